"""The files of words in wildcards/, which prompts name as `__animals__`, `__animals/cats__` or `__animals/*__`.

A line is one of the words, which may vary in turn; `3::red` counts three times. Empty lines and lines that begin with #
are none. A file that leads back to itself is refused.
"""

import re
from collections.abc import Iterator
from fnmatch import translate
from functools import cached_property
from itertools import islice
from pathlib import Path

from sdbatch.errors import JobError, printable
from sdbatch.job.messages import likely
from sdbatch.messages import Message
from sdbatch.prompts.words import Option, parse
from sdbatch.storage import files
from sdbatch.storage.file_names import NOBODYS_PREFIXES, is_text, natural_key
from sdbatch.storage.root import Root

FOLDER = "wildcards"
FIELD = "dynamic_prompts"  # which an error begins with
SUFFIX = ".txt"
MOST_FILES = 20_000  # looked at
MAX_BYTES = 4 * 1024 * 1024
MAX_WORDS = 200_000  # of all files that a job names
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_WEIGHTED = re.compile(r"(\d{1,6}(?:\.\d{0,6})?|\.\d{1,6})::(.*)")


class InAFile(JobError):
    """It says which file of words is wrong, so it needs no field before it."""


class Wildcards:
    """Reads each file once, so that a job has the same words for all its images."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self.folder = root.wildcards
        self._read: dict[str, tuple[Option, ...]] = {}
        self._left = MAX_WORDS

    def options(self, name: str, within: tuple[str, ...]) -> tuple[Option, ...]:
        """The words of the files that a name or pattern means, in natural order; `within` are those that led there.

        Raises:
            JobError: there are none, or they lead back to themselves.
        """
        return tuple(option for each in self._named(name) for option in self._words(each, within))

    @cached_property
    def _known(self) -> list[str]:
        """The names of all files, without their suffix."""
        found = islice(files.below(self.folder), MOST_FILES) if self.folder.is_dir() else ()
        names = (path.relative_to(self.folder) for path in found if path.suffix == SUFFIX)
        seen = (n.with_suffix("").as_posix() for n in names if not any(p.startswith(NOBODYS_PREFIXES) for p in n.parts))
        return sorted(filter(is_text, seen), key=natural_key)

    def _named(self, name: str) -> list[str]:
        if any(sign in name for sign in "*?"):
            pattern = re.compile(translate(name.replace("**/", "*").replace("**", "*")))
            found = [each for each in self._known if pattern.match(each)]
        else:
            found = [name] if name in self._known else []
        if found:
            return found
        near = likely(name, self._known) or next((each for each in self._known if each.endswith(f"/{name}")), "")
        instead = (
            Message("did you mean __{name}__?", near) if near else Message("put it there, with a word on each line")
        )
        told = '{field}: there is no "{path}"; {instead}'
        raise InAFile(Message(told, FIELD, printable(f"{FOLDER}/{name[:60]}{SUFFIX}"), instead))

    def _words(self, name: str, within: tuple[str, ...]) -> tuple[Option, ...]:
        if name in within:
            circle = " -> ".join([*within[within.index(name) :], name])
            raise InAFile(Message("{field}: {names}: these files of words lead back to themselves", FIELD, circle))
        if name not in self._read:
            self._read[name] = tuple(self._lines(name, (*within, name)))
        return self._read[name]

    def _lines(self, name: str, within: tuple[str, ...]) -> Iterator[Option]:
        path = f"{FOLDER}/{name}{SUFFIX}"
        lines = [*enumerate(self._text(path).splitlines(), 1)]
        words = [(number, line.strip()) for number, line in lines if line.strip() and not line.lstrip().startswith("#")]
        self._left -= len(words)
        if not words:
            raise InAFile(Message('{field}: "{path}" is empty; it needs a word on each line', FIELD, path))
        if self._left < 0:
            raise InAFile(Message("{field}: the files have more than {most:,} words", FIELD, MAX_WORDS))
        for number, line in words:
            weighted = _WEIGHTED.fullmatch(line)
            weight, said = (float(weighted[1]), weighted[2].strip()) if weighted else (1.0, line)
            if _CONTROL.search(said):
                template = "{field}: {path}: line {number} contains a control character; remove it"
                raise InAFile(Message(template, FIELD, path, number))
            try:
                node = parse(said, self, within)
            except InAFile:
                raise
            except JobError as error:
                template = "{field}: {path}: line {number}: {problem}"
                raise InAFile(Message(template, FIELD, path, number, error)) from error
            if weight > 0:
                yield Option(node, weight)

    def _text(self, path: str) -> str:
        found: Path = self.root.find(FIELD, path, [self.root.path])
        with self.root.open(FIELD, path, found) as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            template = '{field}: "{named}" has {size:,} bytes; the limit is {most:,}'
            raise InAFile(Message(template, FIELD, path, found.stat().st_size, MAX_BYTES))
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InAFile(Message('{field}: "{path}" is not UTF-8 text; save it as UTF-8', FIELD, path)) from error
