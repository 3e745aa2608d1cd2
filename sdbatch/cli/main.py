"""The `sdbatch` command and its exit codes. Each command imports what only it needs."""

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from sdbatch import __version__
from sdbatch.cli import (  # noqa: F401 - each puts its commands on the app
    backup,
    bundle,
    config,
    control,
    delete,
    doctor,
    gallery,
    history,
    init,
    install,
    logs,
    marks,
    metrics,
    model,
    prune,
    schema,
    seats,
    serve,
    status,
    study,
    submit,
    validate,
    web,
)
from sdbatch.cli.common import HELP_NAMES, app, say
from sdbatch.errors import ConfigError, NoRoot, RootBusy, SdbatchError
from sdbatch.messages import Message, here
from sdbatch.operations import account
from sdbatch.storage.files import is_disk_trouble

EXIT_CONFIG = 78  # EX_CONFIG: a restart does not help, so systemd must not try
EXIT_BUSY = 75  # EX_TEMPFAIL: another service holds the root


OLD_NAMES: dict[str, Any] = {"again": history.rerun, "bump": control.prioritize, "clean": prune.prune}
for _name, _command in OLD_NAMES.items():
    app.command(_name, hidden=True)(_command)


@app.callback(invoke_without_command=True)
def _top(*, version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"sdbatch {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command; an error becomes one plain line and an exit code."""
    command = typer.main.get_command(app)
    _prepare(command)
    try:
        command(prog_name="sdbatch")
    except ConfigError as error:
        sys.exit(say(error, EXIT_CONFIG))
    except RootBusy as error:
        sys.exit(say(error, EXIT_BUSY))
    except NoRoot as error:
        sys.exit(say(error, os.EX_UNAVAILABLE))
    except PermissionError as error:
        sys.exit(say(Message("{path}: {problem}{remedy}", error.filename, error.strerror, _who_may(error.filename)), 1))
    except OSError as error:
        said = Message("{path}: {problem}", error.filename, error.strerror) if error.filename else error
        sys.exit(say(said, os.EX_IOERR if is_disk_trouble(error) else 1))
    except SdbatchError as error:
        sys.exit(say(error, 1))


def paragraphs(text: str) -> Iterator[tuple[str, str]]:
    """Those of a command's help: what is translated of each, and what stays, as examples do below their heading."""
    for paragraph in text.split("\n\n"):
        heading, _, examples = paragraph.partition("\n")
        yield (heading, f"\n{examples}") if heading.startswith("Example") else (paragraph, "")


def _prepare(command: Any) -> None:
    """Help in the reader's language; flags take no value, and it is not to say that they do."""
    command.help = "\n\n".join(here(text) + rest for text, rest in paragraphs(command.help or ""))
    context = command.context_class(command, help_option_names=HELP_NAMES)
    for param in (*command.params, command.get_help_option(context)):
        if getattr(param, "is_flag", False):
            param.metavar = ""
        param.help = here(getattr(param, "help", None) or "")
    for inner in getattr(command, "commands", {}).values():
        _prepare(inner)


def _who_may(refused: str | None) -> str:
    """The group whose members may do what was refused, if there is one."""
    for folder in Path(refused or os.curdir).absolute().parents:
        try:
            status = folder.stat()
        except OSError:
            continue  # its parent is not readable either
        if status.st_mode & stat.S_IWGRP and status.st_gid not in {os.getegid(), *os.getgroups()}:
            joins = f"sudo usermod -aG {status.st_gid} {account.name_of(os.geteuid())}"
            return Message("; the group of {folder} may do this ({command}, and log in again)", folder, joins)
        break
    return ""
