"""`sdbatch backup`: a copy of the root, which is a root itself."""

import os
from pathlib import Path
from typing import Annotated

import typer

from sdbatch.cli.common import RootOption, app, named_root
from sdbatch.messages import Message


@app.command()
def backup(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is not there yet.")],
    root: RootOption = Path(),
    *,
    models: Annotated[
        bool | None, typer.Option("--models/--no-models", help="With models/; if not said, where that takes no room.")
    ] = None,
) -> None:
    """Copy the root to DIR, while the service works or not: each job is in the copy once, and DIR is a root itself.

    On the same filesystem pictures and models become hard links and take no room. state/ is left out, since it is made
    anew. A service on the copy draws what was not finished.

    Example: sdbatch backup /srv/backup/monday --root /srv/sdbatch

    Exit codes: 0 done; 1 DIR is there already or lies in the root, or something can't be read; 69 there is no root;
    74 the disk failed or is full. Then nothing is left there.
    """
    from sdbatch.operations import backup  # noqa: PLC0415

    target = Path(os.path.abspath(directory))  # noqa: PTH100 - a link keeps its name
    for line in backup.make(named_root(root), target, models=models):
        typer.echo(Message("note: {line}", line), err=True)
    typer.echo(target)
