"""`sdbatch delete` and `sdbatch trash`: done and failed jobs go to jobs/trash/, and come back from there."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from sdbatch.cli.common import RootOption, app, echo, named_root
from sdbatch.messages import Message, here


@app.command()
def delete(
    jobs: Annotated[list[str], typer.Argument(metavar="JOB...", help="Ids of jobs, their numbers, or parts of ids.")],
    root: RootOption = Path(),
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
) -> None:
    """Move done or failed jobs with all their images to the trash.

    Their images in outputs/ go with them, except those that were changed.
    `sdbatch trash --restore` brings a job back. `sdbatch prune` deletes
    what has been in jobs/trash/ for 30 days (`retention:` can change this).

    Examples:
      sdbatch delete 000042
      sdbatch delete 000042.3 000057 --yes

    Exit codes:
      0  they are in the trash
      1  there is no such job, or it stays
    """
    from sdbatch.client import deletion  # noqa: PLC0415

    place = named_root(root)
    found = deletion.find(place, jobs)
    if not yes:
        for folder in found:
            typer.echo(place.show(folder))
        typer.confirm(here(Message("Move {count} jobs with their images to the trash?", len(found))), abort=True)
    for line in deletion.delete(place, found):
        echo(line)


@app.command()
def trash(
    root: RootOption = Path(),
    *,
    restore: Annotated[str, typer.Option("--restore", metavar="JOB", help="Bring this job back.")] = "",
) -> None:
    """Show the deleted jobs, or bring one back with its images.

    Examples:
      sdbatch trash
      sdbatch trash --restore 000042

    Exit codes:
      0  shown, or it is back
      1  there is no such job in the trash
    """
    from sdbatch.spool import trash  # noqa: PLC0415
    from sdbatch.telemetry.status_file import duration  # noqa: PLC0415

    place = named_root(root)
    place.require(place.inbox)
    if restore:
        echo(trash.restore(place, restore))
        return
    found, now = trash.listed(place), datetime.now(UTC)
    for one in found:
        echo(Message("{id}  deleted {time} ago", one.id, duration((now - one.at).total_seconds())))
    if not found:
        echo(Message("the trash is empty"))
