"""Whether a node can draw for this root: it sees the same files, has the same programs, and its clock agrees.

The service's side writes a token, and the node reads it at the same path. The node writes it into a second file and
renames that, and the service's side must see it. On a share either may see the other's file late.
"""

import platform
import secrets
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from sdbatch import __version__
from sdbatch.engine.protocol import Message as Passed
from sdbatch.messages import Message
from sdbatch.storage import files
from sdbatch.storage.fingerprint import glance

FOLDER = "nodes"  # in state/
VISIBLE_SECONDS = 90.0  # NFS keeps for up to a minute that a file is missing
LOOK_SECONDS = 0.5
ANSWER_SECONDS = VISIBLE_SECONDS + 60  # for a node to answer at all
CLOCK_SLACK = 5.0  # seconds: times in records of several nodes are compared by people
MOST_BYTES = 200
PROGRAMS = ("torch", "diffusers", "transformers")  # whose versions may change images


class Asked(Passed):
    """What a node is asked: `token` lies in `folder`, which it must find at the same path."""

    folder: Path
    name: str
    token: str
    ckpt: Path | None = None


class Answer(Passed):
    """What it answers. `has_token` is whether it read the token; its own file is there then."""

    has_token: bool
    time: float
    versions: dict[str, str]
    ckpt: str = ""


class Moment(NamedTuple):
    """When the question was sent and the answer came, on the service's clock."""

    asked: float
    answered: float


def versions() -> dict[str, str]:
    """Of all that images depend on."""
    found = {"sdbatch": __version__, "Python": platform.python_version().rpartition(".")[0]}
    for program in PROGRAMS:
        try:
            found[program] = metadata.version(program)
        except metadata.PackageNotFoundError:
            found[program] = ""
    return found


def ask(state: Path, name: str, ckpt: Path | None) -> Asked:
    """Write a token for a seat.

    Raises:
        OSError: the folder can't be written here.
    """
    folder, token = state / FOLDER, secrets.token_hex(16)
    files.make_dir(folder)
    asked = Asked(folder=folder, name=name.replace("/", "-"), token=token, ckpt=ckpt)
    files.write_atomically(folder / f"{asked.name}.asked", token.encode())
    return asked


def answer(asked: Asked, sleep: Callable[[float], None] = time.sleep) -> Answer:
    """On the node: look for the token, and write it where the service's side looks."""
    has_token = _sees(asked.folder / f"{asked.name}.asked", asked.token, sleep)
    if has_token:
        try:
            files.write_atomically(asked.folder / f"{asked.name}.answered", asked.token.encode())
        except OSError:
            has_token = False
    looks = glance(asked.ckpt) if asked.ckpt is not None and asked.ckpt.exists() else ""
    return Answer(has_token=has_token, time=time.time(), versions=versions(), ckpt=looks)


def judge(node: str, asked: Asked, answered: Answer, sleep: Callable[[float], None] = time.sleep) -> Message | None:
    """What is wrong with a node, and what to do; None if it can be used."""
    if not answered.has_token:
        template = (
            "{node} does not see the files of this root, or can't write them: mount the same filesystem there, at the "
            "same path and for the same user id, so that {folder} is the same folder"
        )
        return Message(template, node, asked.folder)
    if not _sees(asked.folder / f"{asked.name}.answered", asked.token, sleep):
        template = (
            "what {node} writes to {folder} is not seen here within {seconds} seconds: mount the share with "
            "lookupcache=positive, and see docs/cluster.md"
        )
        return Message(template, node, asked.folder, f"{VISIBLE_SECONDS:g}")
    if differing := _differing(versions(), answered.versions):
        template = "{node} has other programs than this machine ({names}): install the same versions there"
        return Message(template, node, ", ".join(differing))
    if asked.ckpt is not None and answered.ckpt != (glance(asked.ckpt) if asked.ckpt.exists() else ""):
        template = "{node} has another file at {path} than this machine: put the models on the shared filesystem"
        return Message(template, node, asked.ckpt)
    return None


def forget(asked: Asked) -> None:
    """Delete the files of a question."""
    for end in ("asked", "answered"):
        files.clear(asked.folder / f"{asked.name}.{end}")


def clock_apart(answered: Answer, moment: Moment) -> float:
    """By how many seconds its clock is off, at least; 0 where they agree within what the question took."""
    return max(0.0, moment.asked - answered.time, answered.time - moment.answered)


def clock_problem(node: str, answered: Answer, moment: Moment) -> Message | None:
    """What is said of a clock that differs; nothing depends on it but what people read."""
    apart = clock_apart(answered, moment)
    if apart <= CLOCK_SLACK:
        return None
    template = "the clock of {node} differs by {seconds} seconds: use one time server for all nodes"
    return Message(template, node, f"{apart:.0f}")


def _differing(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    return [
        f"{name} {theirs.get(name) or '-'} / {version or '-'}"
        for name, version in ours.items()
        if theirs.get(name) != version
    ]


def _sees(path: Path, token: str, sleep: Callable[[float], None]) -> bool:
    """Whether a file with the token can be seen, at once or after a while."""
    for _ in range(int(VISIBLE_SECONDS / LOOK_SECONDS)):
        try:
            if files.read_regular(path, MOST_BYTES) == token.encode():
                return True
            list(path.parent.iterdir())  # some clients look again only for the whole folder
        except OSError:
            if not path.parent.parent.is_dir():
                return False  # no share is there at all
        sleep(LOOK_SECONDS)
    return False
