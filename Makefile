# make demo: two jobs drawn in ./demo        make test: the tests        make test-slow: those that need minutes
# Each sets up .venv on its own; PYTHON=python3.12 chooses the interpreter.

PYTHON ?= python3
BIN := .venv/bin

# The demo's model is chosen here and nowhere else.
DEMO_CKPT := tests/reference/model/model.ckpt
DEMO_CONFIG := tests/reference/model/v1-inference-tiny.yaml

.PHONY: demo test test-slow lint benchmark clean

$(BIN)/sdbatch: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(BIN)/sdbatch
	$(BIN)/sdbatch init demo --model $(DEMO_CKPT) --config $(DEMO_CONFIG)
	$(BIN)/sdbatch submit --root demo docs/jobs/blue-truck.json docs/jobs/spider-man.json
	$(BIN)/sdbatch serve --root demo --drain
	@echo
	@echo "Look at these pictures (the demo's model has random weights: colourful noise, drawn exactly):"
	@ls demo/outputs/*/*/grid-*.png
	@echo "and at all that was kept of the two jobs:"
	@ls -d demo/jobs/done/*

test: $(BIN)/sdbatch
	$(BIN)/pytest

test-slow: $(BIN)/sdbatch
	$(BIN)/pytest -m slow

lint: $(BIN)/sdbatch
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

benchmark: $(BIN)/sdbatch
	$(BIN)/python benchmarks/overhead.py

clean:
	rm -rf .venv demo
