"""An NVIDIA GPU's normal random numbers, computed anywhere: Philox4x32-10 as CUDA's generator counts.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", and Box & Muller 1958, in the order of cuRAND and
torch.randn: number i of a draw is the first of the four that counter i gives, and each draw moves the other half of the
counter on by one. That holds as long as a GPU has a thread for each number: an H100 up to 270,336 of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi, prod

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float32]

MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
KEY_STEPS = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
ROUNDS = 10
SCALE = np.float32(2.0**-32)


def philox(counter: Words, key: Words) -> Words:
    """Four random words [4, n] of each of the counters [4, n], with a key of two words."""
    c0, c1, c2, c3 = counter
    k0, k1 = np.uint32(key[0]), np.uint32(key[1])
    with np.errstate(over="ignore"):
        for _ in range(ROUNDS):
            first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
            c0, c1, c2, c3 = _high(second) ^ c1 ^ k0, _low(second), _high(first) ^ c3 ^ k1, _low(first)
            k0, k1 = k0 + KEY_STEPS[0], k1 + KEY_STEPS[1]
    return np.stack([c0, c1, c2, c3])


def _low(product: npt.NDArray[np.uint64]) -> Words:
    return product.astype(np.uint32)


def _high(product: npt.NDArray[np.uint64]) -> Words:
    return (product >> np.uint64(32)).astype(np.uint32)


@dataclass
class Philox:
    """A generator, at the draw of number `offset`."""

    seed: int
    offset: int = 0

    def randn(self, shape: Sequence[int]) -> Floats:
        """The next draw of standard normal numbers."""
        count = prod(shape)
        counter = np.zeros((4, count), np.uint32)
        counter[0], counter[2] = self.offset, np.arange(count, dtype=np.uint32)
        self.offset += 1
        words = philox(counter, np.array([self.seed & 0xFFFFFFFF, self.seed >> 32], np.uint32))
        u, v = words[0] * SCALE + SCALE / 2, (words[1] * SCALE + SCALE / 2) * np.float32(2 * pi)
        normal: Floats = (np.sqrt(-2.0 * np.log(u)) * np.sin(v)).astype(np.float32)
        return normal.reshape(shape)
