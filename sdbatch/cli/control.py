"""`sdbatch pause`, `resume`, `cancel`, `retry` and `prioritize`: steering the service by the folders alone."""

from pathlib import Path
from typing import Annotated

import typer

from sdbatch.cli.common import RootOption, app, named_root
from sdbatch.errors import JobError
from sdbatch.messages import Message

JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="A file's name in the inbox, a job's id, or a part of one.")
]


@app.command()
def pause(
    reason: Annotated[str, typer.Argument(help="For whoever wonders; it stands in jobs/PAUSE.")] = "",
    root: RootOption = Path(),
    *,
    unload: Annotated[bool, typer.Option("--unload", help="Free the GPU's memory too.")] = False,
) -> None:
    """Finish the pictures in work, then let everything wait; `sdbatch resume` goes on.

    Example: sdbatch pause "the card is needed" --unload

    Exit codes: 0 it will; 69 there is no root.
    """
    from sdbatch.client import control  # noqa: PLC0415

    typer.echo(control.pause(named_root(root), reason, unload=unload))


@app.command()
def resume(
    root: RootOption = Path(),
    *,
    now: Annotated[bool, typer.Option("--now", help="Draw outside active_hours too, until they begin.")] = False,
) -> None:
    """Go on after a pause; with --now outside the hours in which to draw, too.

    Examples: sdbatch resume --root /srv/sdbatch; sdbatch resume --now

    Exit codes: 0 it does, or was not paused; 69 there is no root.
    """
    from sdbatch.client import control  # noqa: PLC0415

    typer.echo(control.resume(named_root(root), now=now))


@app.command()
def cancel(
    job: JobArgument = "",
    root: RootOption = Path(),
    *,
    everything: Annotated[bool, typer.Option("--all", help="All that waits or is drawn.")] = False,
) -> None:
    """Take a job out, waiting or in work, or a file with all its jobs. Deleting its file from the inbox does as well.

    Examples: sdbatch cancel truck.yaml; sdbatch cancel 000042; sdbatch cancel 000042.3; sdbatch cancel --all

    Exit codes: 0 done; 1 there is no such job, or more than one.
    """
    from sdbatch.client import control  # noqa: PLC0415

    if bool(job) == everything:
        raise JobError("name a job, or say --all")
    place = named_root(root)
    lines = control.cancel_all(place) if everything else [control.cancel(place, job)]
    for line in lines or [Message("nothing waits or is drawn")]:
        typer.echo(line)


@app.command()
def retry(
    job: Annotated[str, typer.Argument(metavar="JOB", help="A job's id, its number, or a part of it.")] = "",
    root: RootOption = Path(),
    *,
    all_failed: Annotated[bool, typer.Option("--all-failed", "--all", help="Everything in jobs/failed/.")] = False,
) -> None:
    """Try a failed job again, with the pictures that it has. Its file in jobs/failed/ may have been mended before.

    The number of a file of several jobs means all of them that failed.

    Examples: sdbatch retry 000042; sdbatch retry 000042.3; sdbatch retry --all-failed --root /srv/sdbatch

    Exit codes: 0 done; 1 there is no such job, or more than one.
    """
    from sdbatch.client import control  # noqa: PLC0415

    if bool(job) == all_failed:
        raise JobError("name a job, or say --all-failed")
    place = named_root(root)
    lines = control.retry_all(place) if all_failed else [control.retry(place, job)]
    for line in lines or [Message("nothing in jobs/failed/ is to be tried again")]:
        typer.echo(line)


@app.command()
def prioritize(job: JobArgument, root: RootOption = Path()) -> None:
    """Put a waiting file into jobs/inbox/urgent/, before all that is not there. What it names may stay where it is.

    Of a file that was taken already, all jobs that wait go first.

    Examples: sdbatch prioritize truck.yaml; sdbatch prioritize 000042

    Exit codes: 0 done; 1 there is no such file, or more than one.
    """
    from sdbatch.client import control  # noqa: PLC0415

    typer.echo(control.prioritize(named_root(root), job))
