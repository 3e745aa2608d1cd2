"""`sdbatch metrics`: prints or writes the metrics for Prometheus."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from sdbatch.cli.common import RootOption, app, open_root, stored


@app.command()
def metrics(
    root: RootOption = Path(),
    textfile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", callback=stored, help="Write them to this file, which ends in .prom."),
    ] = None,
) -> None:
    """Print queue, failures and disks as metrics for Prometheus.

    The page has the same at /metrics. --textfile is for node_exporter: the
    file is replaced at once, so it is always complete.

    Examples:
      sdbatch metrics --root /srv/sdbatch
      sdbatch metrics --textfile /var/lib/prometheus/node-exporter/sdbatch.prom

    Exit codes:
      0   printed, or written
      1   the file can't be written
      69  there is no root
      78  the configuration is invalid
    """
    from sdbatch.history.history import History  # noqa: PLC0415 - as in every command
    from sdbatch.monitoring.metrics import metrics_text  # noqa: PLC0415
    from sdbatch.spool.status_reader import check_root  # noqa: PLC0415
    from sdbatch.storage import files  # noqa: PLC0415

    place, settings = open_root(root)
    check_root(place)
    with closing(History(place, reads_folders=False)) as history:
        text = metrics_text(place, settings, history)
    if textfile is None:
        typer.echo(text.decode(), nl=False)
    else:
        files.write_atomically(textfile.absolute(), text, durable=False, mode=0o644)
