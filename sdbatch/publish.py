"""Staged pictures to the output folder that a job documents, once each, and numbered like the scripts' own.

The numbers are chosen and written down before the first picture is placed, so that whatever stops in between goes
on with the same names. They follow the highest that lies there: the scripts count files, and overwrite a picture
when an earlier one was deleted.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from sdbatch import files

SAMPLES = "samples"
Names = dict[str, str]  # staged name -> name in the output folder, both as samples/00000.png


def choose_names(outdir: Path, staged: Sequence[str]) -> Names:
    """The next free names for staged pictures: samples/00006.png, grid-0001.png."""
    sample = _next_number(outdir / SAMPLES, r"(\d+)\.png")
    grid = _next_number(outdir, r"grid-(\d+)\.png")
    names = {}
    for name in staged:
        if name.startswith("grid"):
            names[name] = f"grid-{grid:04}.png"
            grid += 1
        else:
            names[name] = f"{SAMPLES}/{sample:05}.png"
            sample += 1
    return names


def place_pictures(folder: Path, outdir: Path, names: Names, write_down: Callable[[Names], None]) -> Names:
    """Give each staged picture in `folder` its name in `outdir`; those that have it already are passed over.

    A name that somebody took meanwhile is never overwritten: what is left gets new ones, written down first.
    """
    files.make_dir(outdir / SAMPLES if any("/" in name for name in names.values()) else outdir)
    left = list(names)
    while left:
        source, target = folder / left[0], outdir / names[left[0]]
        try:
            files.place(source, target)
        except FileExistsError:
            if not files.same_content(source, target):
                names = names | choose_names(outdir, left)
                write_down(names)
                continue
        left.pop(0)
    for touched in {(outdir / name).parent for name in names.values()}:
        files.sync_dir(touched)
    return names


def write_setup(outdir: Path, parameters: dict[str, Any], names: Iterable[str]) -> None:
    """The job's parameters as the earlier web service kept them: setup.json, a later job's beside it by its number."""
    data = (json.dumps(parameters, indent=4, ensure_ascii=False) + "\n").encode()
    first = next(iter(names), "0")
    number = re.sub(r"\D", "", first)
    for name in ("setup.json", f"setup-{number}.json"):
        path = outdir / name
        if not path.exists():
            files.write_atomically(path, data)
            return
        if path.read_bytes() == data:
            return


def _next_number(folder: Path, pattern: str) -> int:
    if not folder.is_dir():
        return 0
    matches = (re.fullmatch(pattern, path.name) for path in folder.iterdir())
    return max((int(match[1]) + 1 for match in matches if match), default=0)
