"""`sdbatch prune`: deletes old job folders as `retention:` says."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from sdbatch.cli.common import RootOption, app, echo, open_root
from sdbatch.messages import Message
from sdbatch.storage.files import in_words, is_disk_trouble


@app.command()
def prune(
    root: RootOption = Path(),
    *,
    apply: Annotated[bool, typer.Option("--apply", help="Delete them. Without this they are only shown.")] = False,
) -> None:
    """Show or delete old job folders, as `retention:` says.

    `retention:` is a setting in configs/sdbatch.yaml. The service deletes
    these folders itself when it is idle.

    Examples:
      sdbatch prune --root /srv/sdbatch
      sdbatch prune --apply

    Exit codes:
      0   shown, or deleted
      69  there is no root
      78  the configuration is invalid
    """
    from sdbatch.spool import retention  # noqa: PLC0415

    place, settings = open_root(root)
    place.require(place.inbox)
    outdated = [*retention.outdated(place, settings.retention, datetime.now(UTC))]
    if not outdated:
        echo(Message("nothing to remove; `retention:` has no limit set"))
    for folder in outdated:
        if apply:
            try:
                retention.remove(place, folder, outputs=settings.retention.outputs)
            except OSError as error:
                if is_disk_trouble(error):
                    raise
                echo(
                    Message("can't remove {folder}: {problem}", place.show(folder), in_words(error)),
                    err=True,
                )
                continue
        what = Message("removed {folder}", place.show(folder))
        echo(what if apply else Message("would remove {folder}", place.show(folder)))
