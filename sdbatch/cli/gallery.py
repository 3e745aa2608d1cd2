"""`sdbatch compare` and `sdbatch zip`: several images at once."""

from pathlib import Path
from typing import Annotated

import typer

from sdbatch.cli.common import RootOption, app, echo, named_root
from sdbatch.cli.history import find_picture_names, open_history
from sdbatch.cli.marks import ImagesArgument
from sdbatch.errors import JobError
from sdbatch.messages import Message
from sdbatch.storage import files


@app.command()
def compare(
    images: ImagesArgument,
    root: RootOption = Path(),
    *,
    everything: Annotated[bool, typer.Option("--all", help="Also what is the same.")] = False,
) -> None:
    """Show in which parameters two to four images differ.

    Example:
      sdbatch compare 000042/0 000057/0

    Exit codes:
      0  shown
      1  there is no such image, or they are too few or too many
    """
    from sdbatch.cli import tables  # noqa: PLC0415
    from sdbatch.history import compare  # noqa: PLC0415

    place = named_root(root)
    found = find_picture_names(open_history(place), images)
    if not compare.FEWEST <= len(found) <= compare.MOST:
        raise JobError("give {fewest} to {most} images; these are {count}", compare.FEWEST, compare.MOST, len(found))
    rows = compare.compared(place, found)
    tables.show_compared([picture.path for picture in found], [row for row in rows if everything or row.differs])


@app.command(name="zip")
def zip_(
    images: ImagesArgument,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The file to write.")],
    root: RootOption = Path(),
) -> None:
    """Write images into one zip file.

    Example:
      sdbatch zip 000042 000057/2 -o images.zip

    Exit codes:
      0   written
      1   there is no such image, or FILE exists
      74  the disk failed
    """
    from sdbatch.client import archive  # noqa: PLC0415

    place = named_root(root)
    found = find_picture_names(open_history(place), images)
    if output.exists():
        raise JobError("{output} exists already", output)
    with files.drafted(output.absolute(), durable=True) as target:
        archive.write((picture.path for picture in found), lambda path: files.open_file(place.path / path), target)
    echo(Message("{count} images are in {output}", len(found), output))
