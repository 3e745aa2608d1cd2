"""Runs a network compiled for the shape that is asked, once that is there; until then, and for other shapes, itself.

A compiled network is tried before it is used: on the rows of a step that the network itself computes too. It must give
the same numbers but for rounding, and be faster; else it is never asked again.
"""

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sdbatch.renderer.device.memory import is_out_of_memory
from sdbatch.renderer.networks.calls import run
from sdbatch.renderer.tuning.cuda_graph import CudaGraph
from sdbatch.renderer.tuning.recipe import form_of, recipe_of, weights_of
from sdbatch.renderer.tuning.workshop import Made, Workshop

ENOUGH = 20  # calls of a shape, before it is worth compiling
MOST_SHAPES = 16
TRIALS = 2
GAIN = 0.97  # of the network's own time
CLOSE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}  # of the largest number

Form = tuple[Any, ...]


class ByShape:
    """The networks of one model.

    Attributes:
        mode: auto or max.
        tell: takes a line for the log.
    """

    def __init__(self, workshop: Workshop, mode: str, tell: Callable[[str], None]) -> None:
        self._workshop, self._mode, self._tell = workshop, mode, tell
        self._calls: Counter[Form] = Counter()
        self._recipes: dict[Form, dict[str, Any]] = {}
        self._ordered: set[Form] = set()
        self._made: dict[Form, Made] = {}
        self._in_use: dict[Form, Made | CudaGraph] = {}
        self._weights: dict[int, dict[str, tuple[dict[str, Any], str]]] = {}  # by network, all of one model

    def __call__(self, kind: str, network: Any, *inputs: Tensor) -> Tensor:
        """As `run`."""
        form = form_of(kind, inputs)
        if form in self._made:
            return self._try(form, self._made.pop(form), kind, network, inputs)
        if (ready := self._in_use.get(form)) is not None:
            return self._use(form, ready, kind, network, inputs)
        self._calls[form] += 1
        if form not in self._ordered and len(self._ordered) < MOST_SHAPES:
            self._order(form, kind, network, inputs)
        return run(kind, network, *inputs)

    def _order(self, form: Form, kind: str, network: Any, inputs: tuple[Tensor, ...]) -> None:
        if form not in self._recipes:
            self._recipes[form] = recipe_of(kind, network, inputs, self._mode)
        recipe = self._recipes[form]
        if self._calls[form] >= ENOUGH or self._workshop.has(recipe):
            self._ordered.add(form)
            self._workshop.order(recipe, partial(self._made.__setitem__, form))

    def _use(self, form: Form, ready: Made | CudaGraph, kind: str, network: Any, inputs: tuple[Tensor, ...]) -> Tensor:
        if id(network) not in self._weights:
            self._weights[id(network)] = weights_of(kind, network)
        places = self._weights[id(network)]
        try:
            weights = [found[name] for found, name in map(places.__getitem__, ready.names)]
            with torch.autocast(inputs[0].device.type, enabled=False):  # it is compiled in
                return ready(weights, *map(Tensor.contiguous, inputs))
        except (RuntimeError, AssertionError) as error:  # AssertionError: a LoRA's weights in another layout
            if is_out_of_memory(error):
                raise
            self._drop(form, error)
            return run(kind, network, *inputs)

    def _try(self, form: Form, made: Made, kind: str, network: Any, inputs: tuple[Tensor, ...]) -> Tensor:
        own = run(kind, network, *inputs)
        ready = CudaGraph(made) if own.device.type == "cuda" else made
        self._in_use[form] = ready
        apart = (self._use(form, ready, kind, network, inputs) - own).abs().max() / own.abs().max()
        if form not in self._in_use:
            return own
        ours = min(_seconds(lambda: self._use(form, ready, kind, network, inputs)) for _ in range(TRIALS))
        its = min(_seconds(lambda: run(kind, network, *inputs)) for _ in range(TRIALS))
        told = f"{kind} {tuple(inputs[0].shape)}: {1000 * ours:.2f} ms compiled, {1000 * its:.2f} ms not"
        if not float(apart) < CLOSE[own.dtype]:
            self._drop(form, f"{told}; its numbers are off by {float(apart):.1e}")
        elif ours > GAIN * its:
            self._drop(form, f"{told}; it does not pay")
        else:
            self._tell(told)
        return own

    def _drop(self, form: Form, why: object) -> None:
        self._in_use.pop(form, None)
        self._tell(f"not used compiled: {why}")


def _seconds(work: Callable[[], Tensor]) -> float:
    """How long it takes, on a GPU too."""
    began = time.perf_counter()
    work().flatten()[0].item()
    return time.perf_counter() - began
