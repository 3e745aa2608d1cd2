"""An allocator that gives no tensor of more than so many bytes, as a device with little memory would."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class SmallMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every operation inside that would make a larger tensor fails as CUDA's do."""

    def __init__(self, most: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = most
        self.refused = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The operation's own result, if it fits."""
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) and leaf.nbytes > self.most for leaf in tree_leaves(result)):
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more")
        return result


@contextmanager
def small_memory(network: nn.Module, most: int) -> Iterator[SmallMemory]:
    """For as long as a network computes, no tensor may have more than `most` bytes."""
    memory, forward = SmallMemory(most), network.forward

    def limited(*arguments: Any, **options: Any) -> Any:
        with memory:
            return forward(*arguments, **options)

    network.forward = limited
    try:
        yield memory
    finally:
        del network.forward
