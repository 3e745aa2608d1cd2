"""`sdbatch logs`: shows the log of a job."""

from pathlib import Path
from typing import Annotated

import typer

from sdbatch.cli.common import JsonOption, RootOption, app, echo, named_root


@app.command()
def logs(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job's id, or a part of it, such as 000042.")],
    root: RootOption = Path(),
    *,
    as_json: JsonOption = False,
) -> None:
    """Show the log of a job.

    It is read from log.jsonl in the job's folder. Under systemd the journal
    has the same lines: journalctl JOB_ID=20261122T101530Z-000042-truck

    Examples:
      sdbatch logs 000042 --root /srv/sdbatch
      sdbatch logs 000042 --json | jq .event

    Exit codes:
      0   shown
      1   there is no such job, or it has no log
      69  there is no root
    """
    from sdbatch.client.job_log import log_lines  # noqa: PLC0415

    place = named_root(root)
    place.require(place.inbox)
    for line in log_lines(place, job, as_json=as_json):
        echo(line)
