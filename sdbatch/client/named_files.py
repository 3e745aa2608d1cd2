"""What a job outside the inbox names: the files themselves, beside it or in the root."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdbatch.config.settings import Limits
from sdbatch.errors import JobError, Missing
from sdbatch.imaging.own_prompts import Pair, own_prompts
from sdbatch.prompts.captions import names_beside, read_caption
from sdbatch.prompts.wildcards import Wildcards
from sdbatch.storage.patterns import as_pattern, matching
from sdbatch.storage.root import Root
from sdbatch.storage.spelling import as_stored

EVERYWHERE = Root(Path("/"))  # for a job outside the root, whose files are copied


class NamedFiles:
    """Those of one job.

    Attributes:
        found: so far, by field and name.
    """

    def __init__(self, beside: Path | None, root: Root, limits: Limits) -> None:
        self.beside, self.root, self.limits = beside, root, limits
        self.words = Wildcards(root)
        self.found: dict[tuple[str, str], Path] = {}

    def find(self, field: str, named: str) -> Path:
        """A file that it names."""
        self.found[field, named] = found = find_named(field, named, self.beside, self.root, self.limits)
        return found

    def prompt_file(self, named: str) -> Path:
        """The file of `from_file`."""
        return self.find("from_file", named)

    def images(self, named: str) -> Sequence[str] | None:
        """Those of a pattern; None if it is the name of one."""
        places = [*self._places(named)]
        pattern = next((found for root, bases in places if (found := as_pattern(root, "init_img", named, bases))), None)
        if pattern is None:
            return None
        *others, (root, bases) = places
        for other, its_bases in others:
            with suppress(Missing):
                return matching(other, "init_img", pattern, its_bases)
        return matching(root, "init_img", pattern, bases)

    def own_prompts(self, images: Sequence[str], kind: str) -> list[Pair | None]:
        """What they say, or the texts beside them."""
        if kind == "txt":
            return [self._caption(image) for image in images]
        return [*own_prompts([self.find("init_img", image).resolve() for image in images], kind)]

    def decision(self, name: str, key: str, decide: Callable[[], list[Any]]) -> list[Any]:  # noqa: ARG002
        """Nothing was decided before."""
        return decide()

    def _caption(self, image: str) -> Pair | None:
        for name in names_beside(image):
            with suppress(Missing), self.find("prompt_from", name).open("rb") as file:
                return read_caption(name, file)
        return None

    def _places(self, named: str) -> Iterator[tuple[Root, list[Path]]]:
        """Where a pattern is looked for, in order."""
        if self.beside is None:
            yield self.root, [self.root.inbox, self.root.path]
        elif self.beside.resolve().is_relative_to(self.root.path.resolve()):
            yield self.root, [self.beside.resolve(), self.root.path]
        else:
            if not Path(named).is_absolute():
                yield EVERYWHERE, [self.beside.resolve()]
            yield self.root, [self.root.path]


def find_named(field: str, named: str, beside: Path | None, root: Root, limits: Limits) -> Path:
    """The file that a job names: beside it, or in the root.

    Files in the root follow the service's rules. `submit` copies files beside a job outside the root.

    Raises:
        Missing: it is not there.
        JobError: the service would refuse it.
    """
    if beside is None:
        found = root.find(field, named, [root.inbox, root.path])
    elif (outside := lies_beside(named, beside, root)) is not None:
        if not outside.exists():
            template = '{field}: "{named}" is a link to a file that does not exist; mount its disk, or correct the link'
            raise Missing(template, field, named)
        if not outside.is_file():
            raise JobError('{field}: "{named}" is not a file', field, named)
        found = outside
    else:
        is_in_root = beside.resolve().is_relative_to(root.path.resolve())
        found = root.find(field, named, [beside.resolve(), root.path] if is_in_root else [root.path])
    if not found.is_file():
        raise JobError('{field}: "{named}" is not a file', field, named)
    if (size := found.stat().st_size) > limits.input_bytes:
        template = '{field}: "{named}" has {size:,} bytes; the limit is {most:,}'
        raise JobError(template, field, named, size, limits.input_bytes)
    return found


def lies_beside(named: str, beside: Path, root: Root) -> Path | None:
    """The file that a job outside the root names by a relative path; None if there is none."""
    path = Path(named)
    if path.is_absolute() or "\0" in named:
        return None  # the service accepts such paths only inside the root
    path = as_stored(Path(os.path.normpath(beside / path)))
    top = root.path.resolve()
    leads = Path(os.path.realpath(path))  # unlike resolve, it reports circular links
    is_there = os.path.lexists(path) and not leads.is_relative_to(top)
    return path if is_there and not beside.resolve().is_relative_to(top) else None
