"""What all commands share: the app, common options, and how a root is opened."""

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdbatch.errors import ConfigError
from sdbatch.messages import Message, here
from sdbatch.operations import account
from sdbatch.spool import status_reader
from sdbatch.storage.root import Root
from sdbatch.storage.spelling import as_stored

if TYPE_CHECKING:
    from sdbatch.config.settings import Settings


HELP_NAMES = ["-h", "--help"]

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": HELP_NAMES},
    pretty_exceptions_enable=False,
    help="Generates images from job files: drop a file into DIR/jobs/inbox, find the images in DIR/jobs/done.",
)


def stored(named: "Path | list[Path] | None") -> "Path | list[Path] | None":
    """Paths in their spelling on disk; people may type another normal form."""
    if named is None or isinstance(named, Path):
        return named and as_stored(named)
    return [as_stored(path) for path in named]


def _around(named: Path) -> Path:
    """The named root; by default the root that contains the current folder."""
    if named != Path():
        return named
    above = (Path(os.curdir), *Path.cwd().parents)
    return next((place for place in above if (place / "jobs" / "inbox").is_dir()), named)


RootOption = Annotated[
    Path,
    typer.Option(
        "--root",
        envvar="SDBATCH_ROOT",
        callback=_around,
        show_default=False,
        help="The root folder. Default: the root that you are in.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
SetOption = Annotated[
    list[str],
    typer.Option(
        "-s",
        "--set",
        metavar="FIELD=VALUE",
        show_default=False,
        help="A field of the jobs; a list or a range makes it vary: seed=1..20, scale=[5,7.5].",
    ),
]
FilesArgument = Annotated[
    list[Path], typer.Argument(metavar="FILE...", help="YAML or JSON job files.", callback=stored)
]

UserOption = Annotated[bool, typer.Option("--user", help="A service of your own, without root rights.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be written and run; change nothing.")]


def root_at(path: Path) -> Root:
    """The root at a path. It reads nothing, and keeps root's rights."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - a root behind a link keeps the name people gave it
    return Root(as_stored(absolute))


def named_root(path: Path) -> Root:
    """The root at a path. If root runs the command, it becomes the account that the root belongs to."""
    root = root_at(path)
    folders = (root.state, root.inbox, root.running, root.failed, root.done, root.outputs, root.path)
    account.step_down(root.path, folders)
    return root


def admins_root(path: Path, *parts: str) -> Root:
    """The root at a path, for writing files that only the admin may write; root stays root there."""
    root = root_at(path)
    account.step_down(root.path, [root.path.joinpath(*parts)])
    return root


def open_root(path: Path) -> "tuple[Root, Settings]":
    """A root and its configuration."""
    return configured(named_root(path))


def open_to_write_jobs(path: Path) -> "tuple[Root, Settings]":
    """The same for submitting jobs. A user who can't read the configuration gets what status.json says of it."""
    place = named_root(path)
    try:
        return configured(place)
    except ConfigError as error:
        if not isinstance(error.__cause__, PermissionError):
            raise
    from pydantic import ValidationError  # noqa: PLC0415 - as in `configured`

    from sdbatch.config.settings import ABOUT_JOBS, Settings  # noqa: PLC0415

    said = status_reader.read_status(place).get("settings")
    try:
        about_jobs = {name: value for name, value in (said or {}).items() if name in ABOUT_JOBS}
        settings, by = Settings.model_validate(about_jobs), Message("the service last reported")
    except (ValidationError, AttributeError):
        about_jobs = {}
    if not about_jobs:
        settings, by = Settings(), Message("are the defaults")
    said = "note: you may not read {path}; jobs are checked against the settings that {source}"
    echo(Message(said, place.configuration, by), err=True)
    return settings.apply_to(place), settings


def configured(root: Root, content: bytes | None = None) -> "tuple[Root, Settings]":
    """A root with its configuration; `content` is the file if it was already read."""
    from sdbatch.config import sources  # noqa: PLC0415 - most commands need no settings, and answer sooner

    settings = sources.load(root.configuration, content).settings
    return settings.apply_to(root), settings


def echo(text: str, *, err: bool = False) -> None:
    """Print a message in the reader's language."""
    typer.echo(here(text), err=err)


def say(error: object, code: int) -> int:
    """Print an error in one line; returns the exit code."""
    echo(Message("sdbatch: {problem}", error), err=True)
    if account.stepped_down and os.strerror(errno.EACCES) in str(error):
        who = account.name_of(os.geteuid())
        echo(Message("this ran as {account}, the owner of the root folder, and not as the root user", who), err=True)
    return code
