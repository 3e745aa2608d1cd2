"""`sdbatch config`: every setting in force, and where it came from."""

from pathlib import Path

import typer

from sdbatch.cli.common import JsonOption, RootOption, app, named_root


@app.command()
def config(root: RootOption = Path(), *, as_json: JsonOption = False) -> None:
    """Print every setting in force and where it came from: default, configs/sdbatch.yaml with its line, environment.

    Where a running service still has another value, that is told, and how it gets the new one.

    Examples: sdbatch config --root /srv/sdbatch; SDBATCH_DEVICE=cpu sdbatch config | grep device

    Exit codes: 0 the configuration is right; 78 it is wrong.
    """
    from sdbatch.operations.config_report import config_lines  # noqa: PLC0415

    for line in config_lines(named_root(root), as_json=as_json):
        typer.echo(line)
