"""Publishes staged images in a job's output folder, once each, numbered as the scripts do.

The names are chosen and written down before the first image is placed, so that the same names are used after a stop.
They follow the highest existing number. (The scripts count files, and overwrite an image if an earlier one was
deleted.) Images with a name of their own, such as that of the photograph that they were made from, get it: cat.png, or
cat-00.png and so on where there are several.
"""

import errno
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path, PurePath
from typing import Any

from sdbatch.errors import JobError
from sdbatch.messages import Message
from sdbatch.storage import files
from sdbatch.storage.root import SAMPLES

REMEMBERED = 32  # folders whose last numbers are kept, and of which it is known that they were swept
LONGEST_STEM = 60  # letters, of which a name may have 255 bytes
_SAMPLE, _GRID = r"(\d+)\.png", r"grid-(\d+)\.png"
Names = dict[str, str]  # staged name -> name in the output folder, both as samples/00000.png


class Publisher:
    """Chooses names and publishes under them. It remembers only the last numbers of a few folders."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[Path, str], tuple[int, int]] = {}  # a folder's mtime, and the next number then
        self._swept: dict[Path, None] = {}

    def choose_names(self, outdir: Path, staged: Sequence[str], stems: Mapping[str, str] | None = None) -> Names:
        """The next free names for staged images: samples/00006.png, grid-0001.png; `stems` are names of their own."""
        own = _own_names(outdir / SAMPLES, {name: stem for name in staged if (stem := (stems or {}).get(name))})
        sample = self._next_number(outdir / SAMPLES, _SAMPLE)
        grid = self._next_number(outdir, _GRID)
        names = {}
        for name in staged:
            if name in own:
                names[name] = own[name]
            elif name.startswith("grid"):
                names[name] = f"grid-{grid:04}.png"
                grid += 1
            else:
                names[name] = f"{SAMPLES}/{sample:05}.png"
                sample += 1
        return names

    def publish(
        self,
        folder: Path,
        outdir: Path,
        names: Names,
        write_down: Callable[[Names], None],
        parameters: dict[str, Any],
        stems: Mapping[str, str] | None = None,
    ) -> Names:
        """Give each staged image in `folder` its name in `outdir`, with the job's parameters beside it.

        Images that already have their name are skipped. A name that somebody took meanwhile is never overwritten: the
        remaining images get new names, which are written down first. Returns the final names.
        """
        files.make_dir(outdir / SAMPLES if any("/" in name for name in names.values()) else outdir)
        self._sweep(outdir)
        left = list(names)
        while left:
            source, target = folder / left[0], outdir / names[left[0]]
            try:
                files.place(source, target)
            except FileExistsError:
                if not is_placed(source, target):
                    self._numbers.clear()  # a coarse clock hid somebody's change
                    names = names | self.choose_names(outdir, left, stems)
                    write_down(names)
                    continue
            left.pop(0)
        _write_setup(outdir, parameters, names.values())
        for touched in {outdir, *((outdir / name).parent for name in names.values())}:
            files.sync_dir(touched)
        self._remember(outdir / SAMPLES, _SAMPLE, names)
        self._remember(outdir, _GRID, names)
        return names

    def _sweep(self, outdir: Path) -> None:
        """Delete the drafts of a killed service, once per folder; remembered for a limited number of folders."""
        if outdir not in self._swept:
            for folder in (outdir, outdir / SAMPLES):
                files.sweep(folder)
            self._swept[outdir] = None
            if len(self._swept) > REMEMBERED:
                del self._swept[next(iter(self._swept))]

    def _next_number(self, folder: Path, pattern: str) -> int:
        """One more than the highest number in a folder, which is read again only after changes."""
        if not folder.is_dir():
            return 0
        mtime = folder.stat().st_mtime_ns
        known, number = self._numbers.pop((folder, pattern), (0, 0))
        if mtime != known:
            matches = (re.fullmatch(pattern, path.name) for path in folder.iterdir())
            number = max((int(match[1]) + 1 for match in matches if match), default=0)
        self._numbers[folder, pattern] = (mtime, number)
        if len(self._numbers) > REMEMBERED:
            del self._numbers[next(iter(self._numbers))]
        return number

    def _remember(self, folder: Path, pattern: str, names: Names) -> None:
        """Note our own change of a folder, so that it is not read again because of it."""
        if (folder, pattern) in self._numbers:
            matches = (re.fullmatch(pattern, name.rpartition("/")[2]) for name in names.values())
            ours = max((int(match[1]) + 1 for match in matches if match), default=0)
            number = max(ours, self._numbers[folder, pattern][1])
            self._numbers[folder, pattern] = (folder.stat().st_mtime_ns, number)


def _own_names(folder: Path, stems: Mapping[str, str]) -> Names:
    """Free names for images with a name of their own; numbered if there are several, or it is taken or all digits."""
    if not stems:
        return {}
    taken = {path.name.casefold() for path in folder.iterdir()} if folder.is_dir() else set[str]()
    wanted = Counter(stem.casefold() for stem in stems.values())
    numbers: dict[str, Iterator[int]] = {}
    names: Names = {}
    for staged, stem in stems.items():
        alone = f"{stem}.png"
        is_number = stem.isdecimal()  # other jobs count their images by these
        if wanted[stem.casefold()] == 1 and alone.casefold() not in taken and not is_number:
            name = alone
        else:
            count_on = numbers.setdefault(stem.casefold(), count())
            name = next(each for n in count_on if (each := f"{stem}-{n:02}.png").casefold() not in taken)
        taken.add(name.casefold())
        names[staged] = f"{SAMPLES}/{name}"
    return names


def stem_of(named: str) -> str:
    """The name that an image made from the file `named` gets, without suffix: letters, digits, dots, - and _."""
    return re.sub(r"[^\w.-]+", "-", PurePath(named).stem).strip("-.")[:LONGEST_STEM] or "image"


def is_placed(source: Path, target: Path) -> bool:
    """Whether `target` is the published `source`.

    A copy of it also counts: that is what there is after a stop where the filesystem has no hard links, and in a copied
    root. But a file with two names that is another one belongs to a job with the same parameters.
    """
    return files.same_content(source, target) and (source.samefile(target) or target.stat().st_nlink == 1)


def make_outdir(outdir: Path, grid_alone: bool) -> Path:
    """Create the output folder before the job runs, so that an impossible name fails early."""
    try:
        files.make_dir(outdir if grid_alone else outdir / SAMPLES)
        for folder in (outdir, outdir / SAMPLES):
            if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        if files.is_disk_trouble(error):
            raise
        remedy: str = Message("; give it to the service's user: chown -R {user} {folder}", os.geteuid(), outdir)
        if not isinstance(error, PermissionError):
            remedy = ""
        raise JobError("outdir: can't write to {folder}: {problem}{remedy}", outdir, error.strerror, remedy) from error
    return outdir


def _write_setup(outdir: Path, parameters: dict[str, Any], names: Iterable[str]) -> None:
    """Write the job's parameters as the earlier web service did: setup.json, with a number for later jobs."""
    data = (json.dumps(parameters, indent=4, ensure_ascii=False) + "\n").encode()
    first = next(iter(names), "0")
    number = re.sub(r"\D", "", first)
    for name in ("setup.json", f"setup-{number}.json"):
        path = outdir / name
        if not path.exists():
            files.write_whole(path, data)
            return
        if files.read_regular(path, len(data) + 1) in (None, data):
            return  # a foreign folder, pipe or link has this name; the manifest contains everything
