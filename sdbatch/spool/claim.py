"""claim.json: where a job came from, how often it was tried, and what people are told of it.

Members of the group may write one, so all that it says is checked.
"""

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from sdbatch.spool import handover
from sdbatch.storage import files
from sdbatch.storage.reason import CLAIM, MOST_CLAIM
from sdbatch.storage.root import SAMPLES

_PUBLISHED = re.compile(rf"({SAMPLES}/)?[\w-][\w.-]*\.png")


def _in_the_inbox(name: str) -> str:
    """Members of the group can write a claim.json, so its paths must be inside the inbox."""
    path = PurePath(name)
    os.fsencode(name)  # a ValueError, if no file can have it
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError("it leads out of the inbox")
    return name


def _as_held(name: str) -> str:
    if name and not PurePath(name).parent.name.startswith(handover.TAKEN):
        raise ValueError("no place that a file is taken to")
    return _in_the_inbox(name)


def _as_published(name: str) -> str:
    if not _PUBLISHED.fullmatch(name):
        raise ValueError("no name of a picture of ours")
    return name


PictureName = Annotated[str, AfterValidator(_as_published)]


@dataclass
class Claim:
    """A claimed job, as claim.json describes it. `Spool.note` changes both.

    Attributes:
        id: the name of its folder in running/, later in done/ or failed/.
        file: the dropped file's name in that folder.
        source: its place in the inbox.
        part: which job of the file this is, from 1.
        parts: how many jobs the file has; 0 until it is parsed.
        attempts: how often the renderer got it since its last finished image.
        outputs: the names its pictures get in the output folder, once chosen.
        priority: of several files that wait, the one with the most goes first.
        staged: how many pictures were finished when it was last given to the renderer.
        held: where the dropped file lies from the inbox on, if that is on another filesystem.
        inputs: for each field that names a file, what it named and the digest of the copy that is drawn from.
        seed: the one that was drawn by lot for a job that wants that.
        drawn_from: a digest of all that the pictures come from, if any were begun.
        attempt: the folder of the attempt under way.
        alone: what it is to have for itself next, as it ended in company: its renderer, or all of the machine.
        other: what claim.json says beside, as a newer version may; it is kept.
    """

    id: str
    file: str
    source: Annotated[str, AfterValidator(_in_the_inbox)]
    claimed_at: str
    part: int = 1
    parts: int = 0
    attempts: Annotated[int, Field(ge=0)] = 0
    outputs: dict[PictureName, PictureName] | None = None
    priority: int = 0
    staged: int = 0
    held: Annotated[str, AfterValidator(_as_held)] = ""
    inputs: dict[str, tuple[str, str]] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    drawn_from: str = ""
    attempt: str = ""
    alone: Literal["", "renderer", "machine"] = ""
    other: dict[str, Any] = field(default_factory=dict)


_CLAIM = TypeAdapter(Claim)


def read_claim(folder: Path) -> Claim | None:
    """The claim in a folder; None without one, or without the file it claims.

    Raises:
        OSError: it can't be read now, although it may exist.
    """
    if (claim := noted(folder)) is None:
        return None
    try:
        (folder / claim.file).lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return claim


def said_of(folder: Path) -> dict[str, Any] | None:
    """The content of claim.json, if there is any."""
    try:
        said = json.loads(files.read_regular(folder / CLAIM, MOST_CLAIM) or b"")
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def noted(folder: Path) -> Claim | None:
    """The claim from claim.json. Invalid fields get their default; unknown ones are kept."""
    if (said := said_of(folder)) is None:
        return None
    known = {name: value for name, value in said.items() if name in Claim.__dataclass_fields__}
    known |= {"id": folder.name, "other": {name: value for name, value in said.items() if name not in known}}
    try:
        claim = _CLAIM.validate_python(known)
    except ValidationError as error:
        wrong = {str(details["loc"][0]) for details in error.errors(include_url=False) if details["loc"]}
        try:
            claim = _CLAIM.validate_python({name: value for name, value in known.items() if name not in wrong})
        except ValidationError:
            return None  # without its file or source
    return claim if claim.file and claim.file == Path(claim.file).name else None


def to_json(claim: Claim) -> bytes:
    """With an item on each line; `indent` takes five times as long."""
    said = claim.other | {name: value for name, value in vars(claim).items() if name != "other"}
    return json.dumps(said, separators=(",\n ", ": ")).encode()
