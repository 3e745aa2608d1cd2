"""`sdbatch status`: shows what runs, what waits, and what failed."""

import json
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from sdbatch.cli.common import JsonOption, RootOption, app, named_root
from sdbatch.messages import Message, here
from sdbatch.spool import status_reader


@app.command()
def status(
    root: RootOption = Path(),
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Update the screen until Ctrl-C.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show running jobs, devices, the queue, and the last failures.

    It only reads files, so it works over a share, and while the service is
    down. --json prints jobs/status.json with the queue and the failures of
    this moment, and `is_running`.

    Examples:
      sdbatch status --root /srv/sdbatch
      sdbatch status --watch
      sdbatch status --json | jq .job.eta_seconds

    Exit codes:
      0   shown, whether the service runs or not
      2   --watch without a terminal
      69  there is no root
    """
    place = named_root(root)
    status_reader.check_root(place)
    if as_json:
        typer.echo(json.dumps(status_reader.read_overview(place, datetime.now(UTC)), indent=1))
        return
    if watch and not sys.stdout.isatty():
        raise typer.BadParameter(here(Message("--watch needs a terminal; elsewhere use --json")))
    from sdbatch.service import screen  # noqa: PLC0415 - rich, which --json has no need of

    if not watch:
        screen.show(place, datetime.now(UTC))
        return
    with suppress(KeyboardInterrupt):
        screen.watch(place)
