"""`sdbatch prune`: deletes old job folders as `retention:` says, and empties the trash."""

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
    everything: Annotated[bool, typer.Option("--trash", help="Also all of the trash, however new.")] = False,
) -> None:
    """Show or delete old job folders, as `retention:` says.

    `retention:` is a setting in configs/sdbatch.yaml. The service deletes
    these folders itself when it is idle. Jobs in the trash go after 30 days.

    Examples:
      sdbatch prune --root /srv/sdbatch
      sdbatch prune --apply
      sdbatch prune --trash --apply

    Exit codes:
      0   shown, or deleted
      69  there is no root
      78  the configuration is invalid
    """
    from sdbatch.spool import retention, trash  # noqa: PLC0415

    place, settings = open_root(root)
    place.require(place.inbox)
    now = datetime.now(UTC)
    outdated = dict.fromkeys(retention.outdated(place, settings.retention, now))
    outdated |= dict.fromkeys(trash.outdated(place, 0, now) if everything else ())
    if not outdated:
        echo(Message("nothing to remove by `retention:`"))
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
