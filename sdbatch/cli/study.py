"""`sdbatch study`: shows the cells of a study before anything is drawn."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sdbatch.cli.common import FilesArgument, RootOption, SetOption, app, echo, open_to_write_jobs, say
from sdbatch.errors import JobError, printable
from sdbatch.messages import Message, here, lines

if TYPE_CHECKING:
    from sdbatch.job.cells import Cells


@app.command()
def study(
    files: FilesArgument,
    settings: SetOption = [],  # noqa: B006 - typer's own
    root: RootOption = Path(),
    *,
    show_all: Annotated[bool, typer.Option("--all", help="All cells, however many.")] = False,
) -> None:
    """Show the cells of a study, before anything is drawn.

    Examples:
      sdbatch study fruit.yaml --root /srv/sdbatch
      sdbatch study -s seed=1..20 -s scale=[5,7.5] truck.yaml

    Exit codes:
      0   all are valid
      1   a job would fail
      78  the configuration is invalid
    """
    from sdbatch.client.validate import cells_of_file  # noqa: PLC0415
    from sdbatch.study.outline import MOST_SHOWN, summary  # noqa: PLC0415

    place, config = open_to_write_jobs(root)
    is_good = True
    for path in files:
        for cells in cells_of_file(path, place, config.limits, settings):
            if isinstance(cells, JobError):
                is_good = False
                for line in lines(cells.message):
                    say(line, 1)
                continue
            echo(Message("{path}: {line}", path, summary(cells, place)))
            _show(cells, len(cells) if show_all else MOST_SHOWN)
    raise typer.Exit(0 if is_good else 1)


def _show(cells: "Cells", most: int) -> None:
    """A table; in a pipe lines with tabs."""
    from sdbatch.study.outline import table  # noqa: PLC0415

    console = Console(highlight=False)
    rows: Iterator[list[str]] = table(cells, most)
    if console.is_terminal:
        shown = Table(box=None, pad_edge=False, header_style="bold")
        for name in next(rows):
            shown.add_column(here(name), overflow="fold")
        for row in rows:
            shown.add_row(*(Text(printable(value)) for value in row))
        console.print(shown)
    else:
        for row in rows:
            typer.echo("\t".join(printable(here(value)) for value in row))
    if len(cells) > most:
        echo(Message("and {count:,} more: --all shows them", len(cells) - most))
