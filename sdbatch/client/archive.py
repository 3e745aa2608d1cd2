"""Images as one zip file, written while it is read: however many, it takes neither memory nor disk."""

import io
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

CHUNK = 1 << 20
EARLIEST = (1980, 1, 1, 0, 0, 0)  # that a zip file knows


class _Pipe(io.RawIOBase):
    """What was written since it was emptied last. A zip file that can't go back notes sizes behind each file."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(self._parts[-1])

    def emptied(self) -> bytes:
        data, self._parts = b"".join(self._parts), []
        return data


def zipped(paths: Iterable[str], opened: Callable[[str], BinaryIO]) -> Iterator[bytes]:
    """The bytes of a zip file with these images, by their paths from the root; one that is gone is left out.

    Images are compressed already, so they are stored as they are.
    """
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as archive:
        for path in paths:
            try:
                image = opened(path)
            except OSError:
                continue
            info = zipfile.ZipInfo(path, EARLIEST)
            info.external_attr = 0o644 << 16
            with image, archive.open(info, "w", force_zip64=True) as entry:
                while data := image.read(CHUNK):
                    entry.write(data)
                    yield pipe.emptied()
            yield pipe.emptied()
    yield pipe.emptied()


def write(paths: Iterable[str], opened: Callable[[str], BinaryIO], target: BinaryIO) -> None:
    """The same into a file."""
    target.writelines(zipped(paths, opened))
