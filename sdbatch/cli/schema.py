"""`sdbatch schema`: prints the JSON Schema of job files."""

import json

import typer

from sdbatch.cli.common import app


@app.command()
def schema() -> None:
    """Print the JSON Schema of job files, for editors.

    Example:
      sdbatch schema > job.schema.json

    Exit codes:
      0  printed
    """
    from sdbatch.job.json_schema import job_schema  # noqa: PLC0415

    typer.echo(json.dumps(job_schema(), indent=2, ensure_ascii=False))
