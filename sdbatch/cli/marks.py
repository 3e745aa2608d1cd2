"""`sdbatch favourite` and `sdbatch tag`: mark images, to find them again."""

from pathlib import Path
from typing import Annotated

import typer

from sdbatch.cli.common import RootOption, app, echo, named_root
from sdbatch.cli.history import find_picture_names, open_history
from sdbatch.errors import JobError
from sdbatch.messages import Message

ImagesArgument = Annotated[
    list[str], typer.Argument(metavar="IMAGE|JOB...", help="Paths of images, JOB/NUMBER, or jobs: all their images.")
]


@app.command()
def favourite(
    images: ImagesArgument,
    root: RootOption = Path(),
    *,
    remove: Annotated[bool, typer.Option("--remove", help="They are favourites no longer.")] = False,
) -> None:
    """Make images favourites: `history --favourites` finds them.

    The mark is in marks.json in the job's folder.

    Examples:
      sdbatch favourite 000042/2
      sdbatch favourite 000042 --remove

    Exit codes:
      0  done
      1  there is no such image, or it may not be marked
    """
    from sdbatch.history import marking  # noqa: PLC0415

    opened = open_history(named_root(root))
    count = marking.favourite(opened, find_picture_names(opened, images), is_one=not remove)
    echo(Message("{count} images are no favourites now" if remove else "{count} images are favourites", count))


@app.command()
def tag(
    images: ImagesArgument,
    root: RootOption = Path(),
    *,
    add: Annotated[list[str] | None, typer.Option("--add", "-a", metavar="TAG", help="Give them this tag.")] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", "-r", metavar="TAG", help="Take this tag away.")
    ] = None,
) -> None:
    """Give images tags: `sdbatch history --tag best` finds them.

    Tags are in lower case, in marks.json in the job's folder. Without an
    option the tags of the images are shown.

    Examples:
      sdbatch tag 000042/2 --add best --add "for print"
      sdbatch tag 000042 --remove best
      sdbatch tag 000042

    Exit codes:
      0  done
      1  there is no such image, it may not be marked, or a tag is invalid
    """
    from sdbatch.history import marking  # noqa: PLC0415

    opened = open_history(named_root(root))
    pictures = find_picture_names(opened, images)
    if not add and not remove:
        for picture in pictures:
            typer.echo("\t".join((picture.path, ", ".join(picture.tags))))
        return
    if both := {*(add or [])} & {*(remove or [])}:
        raise JobError("--add and --remove both name {tag}", min(both))
    echo(Message("{count} images are tagged anew", marking.tag(opened, pictures, add or [], remove or [])))
