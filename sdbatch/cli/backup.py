"""`sdbatch backup`: a copy of the root, which is a root itself."""

import os
from pathlib import Path
from typing import Annotated

import typer

from sdbatch.cli.common import RootOption, app, echo, named_root
from sdbatch.messages import Message


@app.command()
def backup(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The new folder; it must not exist.")],
    root: RootOption = Path(),
    *,
    models: Annotated[
        bool | None,
        typer.Option("--models/--no-models", help="Copy models/ too. Default: only if that needs no space."),
    ] = None,
) -> None:
    """Copy the root into a new folder, which is a root too.

    The service may run meanwhile: each job is in the copy once. On the same
    filesystem images and models become hard links and need no space. state/
    is left out, because it is made again. A service on the copy finishes
    the jobs that were not done.

    Example:
      sdbatch backup /srv/backup/monday --root /srv/sdbatch

    Exit codes:
      0   done
      1   DIR exists, or lies in the root, or something can't be read
      69  there is no root
      74  the disk failed or is full; nothing is left in DIR
    """
    from sdbatch.operations import backup  # noqa: PLC0415

    target = Path(os.path.abspath(directory))  # noqa: PTH100 - a link keeps its name
    for line in backup.make(named_root(root), target, models=models):
        echo(Message("note: {line}", line), err=True)
    typer.echo(target)
