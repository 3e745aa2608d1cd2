"""`sdbatch pause`, `resume`, `cancel`, `retry` and `prioritize`: they control the service by its folders alone."""

from pathlib import Path
from typing import Annotated

import typer

from sdbatch.cli.common import RootOption, app, echo, named_root
from sdbatch.errors import JobError
from sdbatch.messages import Message

JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="The name of a file in the inbox, or a job's id or a part of it.")
]


@app.command()
def pause(
    reason: Annotated[str, typer.Argument(help="The reason; `status` shows it.")] = "",
    root: RootOption = Path(),
    *,
    unload: Annotated[bool, typer.Option("--unload", help="Free the GPU memory too.")] = False,
    now: Annotated[bool, typer.Option("--now", help="Don't finish the current images.")] = False,
) -> None:
    """Pause the service after the current images, or at once.

    Continue with `sdbatch resume`. With --now the jobs in work are cancelled;
    `sdbatch retry` takes them up at the first missing image.

    Examples:
      sdbatch pause "the GPU is needed" --unload
      sdbatch pause --now

    Exit codes:
      0   the service will pause
      69  there is no root
    """
    from sdbatch.client import control  # noqa: PLC0415

    place = named_root(root)
    if now:
        echo(control.stop(place, reason, unload=unload))
    else:
        echo(control.pause(place, reason, unload=unload))


@app.command()
def resume(
    root: RootOption = Path(),
    *,
    now: Annotated[bool, typer.Option("--now", help="Start now, outside active_hours too.")] = False,
) -> None:
    """Continue after a pause.

    Examples:
      sdbatch resume --root /srv/sdbatch
      sdbatch resume --now

    Exit codes:
      0   the service continues, or was not paused
      69  there is no root
    """
    from sdbatch.client import control  # noqa: PLC0415

    echo(control.resume(named_root(root), now=now))


@app.command()
def cancel(
    job: JobArgument = "",
    root: RootOption = Path(),
    *,
    everything: Annotated[bool, typer.Option("--all", help="Every waiting and running job.")] = False,
) -> None:
    """Cancel a waiting or running job, or a whole file of jobs.

    Deleting the job's file from the inbox cancels it too.

    Examples:
      sdbatch cancel truck.yaml
      sdbatch cancel 000042
      sdbatch cancel 000042.3    the third job of a file
      sdbatch cancel --all

    Exit codes:
      0  done
      1  there is no such job, or more than one
    """
    from sdbatch.client import control  # noqa: PLC0415

    if bool(job) == everything:
        raise JobError("give a job, or --all")
    place = named_root(root)
    lines = control.cancel_all(place) if everything else [control.cancel(place, job)]
    for line in lines or [Message("no job is waiting or running")]:
        echo(line)


@app.command()
def retry(
    job: Annotated[str, typer.Argument(metavar="JOB", help="A job's id, its number, or a part of the id.")] = "",
    root: RootOption = Path(),
    *,
    all_failed: Annotated[bool, typer.Option("--all-failed", "--all", help="Every job in jobs/failed/.")] = False,
) -> None:
    """Run a failed job again. It keeps its finished images.

    You may correct the job file in jobs/failed/ first. If a file holds
    several jobs, its number means all of them that failed.

    Examples:
      sdbatch retry 000042
      sdbatch retry 000042.3    the third job of a file
      sdbatch retry --all-failed --root /srv/sdbatch

    Exit codes:
      0  done
      1  there is no such job, or more than one
    """
    from sdbatch.client import control  # noqa: PLC0415

    if bool(job) == all_failed:
        raise JobError("give a job, or --all-failed")
    place = named_root(root)
    lines = control.retry_all(place) if all_failed else [control.retry(place, job)]
    for line in lines or [Message("there is nothing to retry in jobs/failed/")]:
        echo(line)


@app.command()
def prioritize(
    job: JobArgument,
    root: RootOption = Path(),
    *,
    before: Annotated[str, typer.Option(metavar="OTHER", help="Not to the front, but before this one.")] = "",
) -> None:
    """Move a waiting job to the front of the queue or before another.

    A file in the inbox is moved into jobs/inbox/urgent/. The image that it
    names may stay where it is. If the service has already taken the file,
    all its waiting jobs go first.

    Examples:
      sdbatch prioritize truck.yaml
      sdbatch prioritize 000042
      sdbatch prioritize truck.yaml --before boat.yaml

    Exit codes:
      0  done
      1  there is no such file, or more than one
    """
    from sdbatch.client import control  # noqa: PLC0415

    place = named_root(root)
    echo(control.reorder(place, job, before) if before else control.prioritize(place, job))
