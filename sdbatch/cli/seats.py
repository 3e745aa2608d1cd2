"""`sdbatch seats`: the devices of all machines, and which of them are drained."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sdbatch.cli.common import JsonOption, RootOption, app, echo, named_root

seats = typer.Typer(invoke_without_command=True)
app.add_typer(seats, name="seats")

NodeArgument = Annotated[
    str, typer.Argument(metavar="NODE", help="The name of the machine, as `sdbatch seats` shows it.")
]


@seats.callback()
def list_seats(context: typer.Context, root: RootOption = Path(), *, as_json: JsonOption = False) -> None:
    """List the devices by machine, or take a machine out of use.

    Each line has the device, its state, its jobs, its model, images an hour,
    and how often its renderer was started again. It only reads files.

    Examples:
      sdbatch seats --root /srv/sdbatch
      sdbatch seats --json | jq '.[].state'

    Exit codes:
      0   listed
      1   none: the service is not running
      69  there is no root
    """
    if context.invoked_subcommand:
        return
    from datetime import UTC, datetime  # noqa: PLC0415

    from sdbatch.spool import status_reader  # noqa: PLC0415

    place = named_root(root)
    status_reader.check_root(place)
    facts = status_reader.read_overview(place, datetime.now(UTC))
    if as_json:
        typer.echo(json.dumps(facts["seats"], indent=1))
    else:
        from sdbatch.cli import tables  # noqa: PLC0415 - rich, which --json has no need of

        tables.show_seats(facts["seats"])
    raise typer.Exit(0 if facts["seats"] else 1)


@seats.command("drain")
def drain(node: NodeArgument, root: RootOption = Path()) -> None:
    """Let a machine end its jobs, and give it no others.

    Its renderers end then, so that it can be upgraded or used otherwise.
    Use it again with `sdbatch seats resume`.

    Example:
      sdbatch seats drain gpu-a --root /srv/sdbatch

    Exit codes:
      0   the machine will be drained
      1   there is no such machine
      69  there is no root
    """
    from sdbatch.client import nodes  # noqa: PLC0415

    echo(nodes.drain(named_root(root), node))


@seats.command("resume")
def resume(node: NodeArgument, root: RootOption = Path()) -> None:
    """Use a drained machine again.

    Example:
      sdbatch seats resume gpu-a --root /srv/sdbatch

    Exit codes:
      0   it gets jobs again
      1   it was not drained
      69  there is no root
    """
    from sdbatch.client import nodes  # noqa: PLC0415

    echo(nodes.resume(named_root(root), node))
