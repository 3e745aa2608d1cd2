"""`python -m sdbatch.renderer.tuning.compiling RECIPE TARGET`: compiles a network, in a process of its own.

It needs no weights, only their shapes: the network is exported from tensors without memory, and compiled with the
weights as inputs. So one result serves every checkpoint of this architecture, with LoRAs and without.

It takes up to minutes of Python, which would keep the sampler waiting, and it may crash.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdbatch.engine.orphan import die_with_parent
from sdbatch.renderer.networks import library
from sdbatch.renderer.networks.calls import CALLS
from sdbatch.renderer.tuning.recipe import UNUSED
from sdbatch.storage import files

NICENESS = 10  # what is sampled meanwhile goes first
OPTIONS: dict[str, dict[str, Any]] = {
    "auto": {},
    "max": {"max_autotune": True, "coordinate_descent_tuning": True},
}


class _Network(nn.Module):
    """A network whose inputs are tensors alone."""

    def __init__(self, kind: str, network: nn.Module) -> None:
        super().__init__()
        self.kind, self.network = kind, network

    def forward(self, *inputs: Tensor) -> Tensor:
        return CALLS[self.kind](self.network, *inputs)


def compile_for(recipe: dict[str, Any], target: Path) -> None:
    """Write the compiled network, and beside it the names of the weights in their order."""
    torch.set_num_threads(recipe["threads"] or 1)
    device, autocast = recipe["device"], recipe["autocast"]
    from torch._inductor import standalone_compile  # noqa: PLC0415 - seconds of imports
    from torch._subclasses import FakeTensorMode  # noqa: PLC0415

    def empty(like: tuple[list[int], list[int], str]) -> Tensor:
        shape, stride, dtype = like
        return torch.empty_strided(shape, stride, dtype=getattr(torch, dtype), device=device)

    dtype = getattr(torch, autocast) if autocast else None
    # What is exported are the calls before autocast acts on them, so it has to be on until they are compiled.
    with torch.no_grad(), torch.autocast(device, dtype=dtype, enabled=dtype is not None):
        with FakeTensorMode():
            network = getattr(library, recipe["class"]).from_config(recipe["config"]).eval()
            for part in UNUSED if recipe["kind"] == "decoder" else ():
                setattr(network, part.removesuffix("."), None)
            weights = {name: nn.Parameter(empty(like), requires_grad=False) for name, like in recipe["weights"].items()}
            network.load_state_dict(weights, assign=True)
            inputs = tuple(map(empty, recipe["inputs"]))
            exported = torch.export.export(_Network(recipe["kind"], network), inputs, strict=False)
        names = [str(spec.target).removeprefix("network.") for spec in exported.graph_signature.input_specs]
        names = names[: -len(inputs)]
        # Tensors with memory, whatever is in it: on a GPU the compiler tries its kernels out.
        values: list[Any] = [empty(recipe["weights"][name]) for name in names] + [*map(empty, recipe["inputs"])]
        options = {"config_patches": OPTIONS[recipe["mode"]]}
        graph = exported.graph_module
        artifact = standalone_compile(graph, values, dynamic_shapes="from_example_inputs", options=options)
    files.write_atomically(target.with_suffix(".json"), json.dumps(names).encode())
    draft = target.with_suffix(".draft")
    artifact.save(path=str(draft), format="binary")
    draft.replace(target)


def main() -> None:
    """The recipe is a file of JSON."""
    die_with_parent()
    os.nice(NICENESS)
    recipe, target = map(Path, sys.argv[1:])
    compile_for(json.loads(recipe.read_bytes()), target)


if __name__ == "__main__":
    main()
