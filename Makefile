# make demo: two jobs drawn in ./demo        make test: the tests in a few minutes
# make test-all: the same at more steps, states and inputs        make test-gpu: those that need a GPU, else skipped
# make test-slow: those that need minutes or gigabytes, then all others with our programs started cold
# make test-ray: those of a cluster; installs ray
# make bundle: dist/sdbatch-bundle.tar, for a server without any network; OPTIONS='--python 3.12 --ckpt FILE' and so on
# Each sets up .venv on its own; PYTHON=python3.12 chooses the interpreter.

PYTHON ?= python3
# One more than cores, up to five: many tests wait for other programs.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 4 ? n + 1 : 5)))
BIN := .venv/bin
SHARED_PYTEST := $(BIN)/pytest --numprocesses=$(WORKERS) --dist=loadscope --no-loadscope-reorder

# Tests start many processes: none shall compile anew what another has.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo screenshots test test-all test-slow test-gpu test-ray lint benchmark bundle clean

$(BIN)/sdbatch: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(BIN)/sdbatch
	$(BIN)/sdbatch init demo --demo
	$(BIN)/sdbatch submit --root demo docs/jobs/blue-truck.json docs/jobs/spider-man.json
	$(BIN)/sdbatch serve --root demo --drain
	@echo
	@echo "Look at these pictures:"
	@ls demo/outputs/*/*/grid-*.png
	@echo "and at all that was kept of the two jobs:"
	@ls -d demo/jobs/done/*

# The pictures in the README, made by the demo itself.
docs/demo-txt2img.png docs/demo-img2img.png: demo
	cp demo/outputs/txt2img/*/grid-0000.png docs/demo-txt2img.png
	cp demo/outputs/img2img/*/grid-0000.png docs/demo-img2img.png

test: $(BIN)/sdbatch
	$(SHARED_PYTEST)

# Those of `make test` are among them.
test-all: $(BIN)/sdbatch
	$(SHARED_PYTEST) -m 'not slow and not gpu and not ray' --hypothesis-profile=thorough

# In the usual tests our programs start as forks of the tests (see tests/warm.py), here as anywhere.
test-slow: $(BIN)/sdbatch
	$(BIN)/pytest -m slow
	COLD_TESTS=1 $(SHARED_PYTEST)

# One after another: each test has a cluster of its own, and each of Ray's nodes some hundred megabytes.
test-ray: $(BIN)/sdbatch
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,ray]'
	$(BIN)/pytest -m ray

test-gpu: $(BIN)/sdbatch
	$(BIN)/pytest -m gpu

# The page's screenshots in docs/, with images of the demo's model.
screenshots: $(BIN)/sdbatch
	SCREENSHOTS=docs $(BIN)/pytest -m 'thorough or not thorough' tests/test_web_browser.py

lint: $(BIN)/sdbatch
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

benchmark: $(BIN)/sdbatch
	$(BIN)/python benchmarks/overhead.py

bundle: $(BIN)/sdbatch
	$(BIN)/sdbatch bundle --output dist/sdbatch-bundle.tar $(OPTIONS)

clean:
	rm -rf .venv demo dist
