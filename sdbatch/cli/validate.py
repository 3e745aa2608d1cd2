"""`sdbatch validate`: checks job files."""

from pathlib import Path

import typer

from sdbatch.cli.common import FilesArgument, RootOption, app, echo, open_to_write_jobs


@app.command()
def validate(files: FilesArgument, root: RootOption = Path()) -> None:
    """Check job files, and show what they would generate.

    Example:
      sdbatch validate truck.yaml --root /srv/sdbatch

    Exit codes:
      0   all are valid
      1   a job would fail
      78  the configuration is invalid
    """
    from sdbatch.client.validate import check_file  # noqa: PLC0415

    place, settings = open_to_write_jobs(root)
    is_good = True
    for path in files:
        for line, is_ok in check_file(path, place, settings.limits):
            echo(line, err=not is_ok)
            is_good &= is_ok
    raise typer.Exit(0 if is_good else 1)
