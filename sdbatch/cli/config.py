"""`sdbatch config`: shows every setting, and where it was set."""

from pathlib import Path

from sdbatch.cli.common import JsonOption, RootOption, app, echo, named_root


@app.command()
def config(root: RootOption = Path(), *, as_json: JsonOption = False) -> None:
    """Show every setting, its value, and where it was set.

    A value comes from the default, from a line of configs/sdbatch.yaml, or
    from an SDBATCH_* variable. If a running service still uses another
    value, the command says so, and how to apply the new one.

    Examples:
      sdbatch config --root /srv/sdbatch
      SDBATCH_DEVICES=cpu sdbatch config | grep device

    Exit codes:
      0   the configuration is valid
      78  it is invalid
    """
    from sdbatch.operations.config_report import config_lines  # noqa: PLC0415

    for line in config_lines(named_root(root), as_json=as_json):
        echo(line)
