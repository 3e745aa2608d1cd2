"""`sdbatch doctor`: checks everything that generating images needs."""

from pathlib import Path
from typing import Annotated

import typer

from sdbatch.cli.common import JsonOption, RootOption, app, named_root


@app.command()
def doctor(
    root: RootOption = Path(),
    ckpt: Annotated[str, typer.Option(metavar="NAME", help="The checkpoint to load, as a job names it.")] = "",
    config: Annotated[str, typer.Option(metavar="NAME", help="Its config, as a job names it.")] = "",
    *,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Don't load the checkpoint. Loading takes time, and memory of three times its size."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check everything that generating images needs.

    It checks folders, filesystem, inotify, disk space, clock, torch, device,
    tokenizer, checkpoint, network, service and unit. It says how to correct
    each problem, and changes nothing. Run it as the service's user.

    Examples:
      sdbatch doctor --root /srv/sdbatch
      sdbatch doctor --root /srv/sdbatch --quick --json | jq .level
      sdbatch doctor --ckpt other.safetensors --config other.yaml

    Exit codes:
      0  no problem, perhaps warnings
      1  there is a problem
    """
    from sdbatch.operations import doctor  # noqa: PLC0415

    place = named_root(root)
    findings = []
    for finding in doctor.examine(
        place, ckpt or doctor.DEFAULT["ckpt"], config or doctor.DEFAULT["config"], quick=quick
    ):
        findings.append(finding)
        if not as_json:
            colour = {"ok": typer.colors.GREEN, "warning": typer.colors.YELLOW, "problem": typer.colors.RED}
            level, rest = finding.level, doctor.as_lines(finding).removeprefix(finding.level)
            typer.echo(typer.style(level, fg=colour[level]) + rest)
    if as_json:
        typer.echo(doctor.as_json(place, findings))
    raise typer.Exit(1 if doctor.worst(findings) == "problem" else 0)
