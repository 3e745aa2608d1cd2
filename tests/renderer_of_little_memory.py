"""As a program: the renderer, for whom memory has room for 64x64 pixels and not for 256x256."""

from collections.abc import Generator
from typing import Any

from small_memory import SmallMemory

from sdbatch.renderer import company, renderer
from sdbatch.renderer.draw import samplings


def limited(*arguments: Any) -> Generator[Any]:
    with SmallMemory(1 << 17):
        yield from samplings(*arguments)


if __name__ == "__main__":
    vars(company)["samplings"] = limited
    renderer.main()
