"""What images say that they show: in the text of the program that made them, or in their EXIF."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from sdbatch.imaging import infotext
from sdbatch.imaging.reader_process import Reader

Pair = tuple[str, str]


def own_prompts(paths: Iterable[Path], kind: str) -> Iterator[Pair | None]:
    """Prompt and negative prompt of each image; None of those that say nothing. `kind` is "parameters" or "exif".

    They are read in a process of their own.

    Raises:
        ReadTimedOut: one takes too long.
    """
    with Reader() as images:
        for path in paths:
            said = images.read(path)
            if said is None:
                yield None
            elif kind == "exif":
                yield _of_comment(said.comment)
            else:
                yield _pair(str(said.fields.get("prompt", "")), str(said.fields.get("negative_prompt", "")))


def _of_comment(text: str) -> Pair | None:
    """A comment may be that of a program, with settings, or a caption."""
    told = infotext.parse(text)
    return _pair(told.prompt, told.negative)


def _pair(prompt: str, negative: str) -> Pair | None:
    return (prompt.strip(), negative.strip()) if prompt.strip() else None
