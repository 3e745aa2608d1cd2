"""A compiled network recorded once as a CUDA graph, and then only replayed: a step costs the CPU one launch.

Recorded by hand, in the sampler's own stream: what the compiler would do for us (cudagraph trees) is bound to the
thread that compiled. What other threads ask the GPU meanwhile is not recorded.
"""

from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from sdbatch.renderer.tuning.workshop import Made

WARM_UPS = 2  # outside the recording, for what libraries set up at their first use

# Of each thread: its graphs are replayed one after another, and may use the same memory.
_pools: dict[tuple[torch.device, int], Any] = {}


class CudaGraph:
    """Recorded at the first call, and again where the weights lie elsewhere, such as a LoRA's."""

    def __init__(self, made: Made) -> None:
        self.made, self.names = made, made.names
        self._graph: torch.cuda.CUDAGraph | None = None
        self._places: list[int] = []  # of the weights, which are not held
        self._inputs: tuple[Tensor, ...] = ()
        self._output = torch.empty(0)

    def __call__(self, weights: list[Tensor], *inputs: Tensor) -> Tensor:
        """What the network gives."""
        if (places := [weight.data_ptr() for weight in weights]) != self._places or self._graph is None:
            self._graph = None
            self._graph, self._places = self._recorded(weights, inputs), places
        for place, value in zip(self._inputs, inputs, strict=True):
            place.copy_(value)
        self._graph.replay()
        return self._output.clone()  # the next replay overwrites it

    def _recorded(self, weights: list[Tensor], inputs: tuple[Tensor, ...]) -> torch.cuda.CUDAGraph:
        device, self._inputs = inputs[0].device, tuple(map(torch.clone, inputs))
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self.made(weights, *self._inputs)
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = _pools.setdefault((device, get_ident()), torch.cuda.graph_pool_handle())
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._output = self.made(weights, *self._inputs)
        return graph
