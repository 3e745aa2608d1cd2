"""`sdbatch submit`: drops job files into the inbox."""

from pathlib import Path

import typer

from sdbatch.cli.common import FilesArgument, RootOption, app, open_to_write_jobs, say
from sdbatch.errors import JobError, NoRoot
from sdbatch.messages import Message


@app.command()
def submit(files: FilesArgument, root: RootOption = Path()) -> None:
    """Drop job files into the inbox the right way: checked, under a hidden name, synced, then renamed.

    The picture or prompt file that a job names beside it goes along, with the job in a folder of its own. A name that
    waits there already is not overwritten: the new file gets a number.

    Example: sdbatch submit truck.yaml --root /srv/sdbatch

    Exit codes: 0 all lie in the inbox; 1 a job would fail, or has no name of one, and its file was not dropped;
    69 there is no root; 74 the disk failed; 78 the configuration is wrong.
    """
    from sdbatch.client import submit  # noqa: PLC0415

    place, settings = open_to_write_jobs(root)
    is_good = True
    for path in files:
        try:
            dropped = submit.submit(path, place, settings.limits)
        except NoRoot:
            raise
        except JobError as error:  # the others go their way
            say(error, 1)
            is_good = False
            continue
        typer.echo(dropped.path)
        for named in dropped.along:
            typer.echo(Message("{named} was taken along", named), err=True)
    raise typer.Exit(0 if is_good else 1)
