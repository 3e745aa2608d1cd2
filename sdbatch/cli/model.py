"""`sdbatch model`: lists, imports, checks and converts checkpoints."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sdbatch.cli.common import JsonOption, RootOption, admins_root, app, configured, echo, open_root, stored
from sdbatch.errors import JobError
from sdbatch.messages import Message, here
from sdbatch.operations import catalog
from sdbatch.storage.file_names import DEFAULT_CONFIG

if TYPE_CHECKING:
    from sdbatch.operations.catalog import Told
    from sdbatch.storage.root import ModelFiles, Root

SHOWN = 10  # names of each kind that verify lists

model = typer.Typer(no_args_is_help=True, help="List, import, check and convert checkpoints.")
app.add_typer(model, name="model")

CkptArgument = Annotated[
    str, typer.Argument(metavar="CKPT", help="The checkpoint as a job names it: a path, or a name of `models:`.")
]
ConfigOption = Annotated[str, typer.Option(help="Its config, as a job names it.")]
Precision = Literal["float32", "float16", "bfloat16"]


@model.command("list")
def list_models(root: RootOption = Path(), *, as_json: JsonOption = False) -> None:
    """List the models that jobs can name.

    It shows their sizes, and in which precisions they are converted.

    Examples:
      sdbatch model list --root /srv/sdbatch
      sdbatch model list --json | jq '.[].name'

    Exit codes:
      0   listed
      1   there is none
      69  there is no root
    """
    place, _ = open_root(root)
    place.require(place.inbox)
    found = catalog.list_models(place)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=1, ensure_ascii=False))
    else:
        from sdbatch.cli import tables  # noqa: PLC0415 - rich, which --json has no need of

        tables.show_models(found)
    if not found and not as_json:
        echo(Message("there is no checkpoint in {models}", place.models), err=True)
    raise typer.Exit(0 if found else 1)


@model.command("import")
def import_model(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A checkpoint, or a folder in diffusers format.", callback=stored)
    ],
    root: RootOption = Path(),
    *,
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="Its name in models/.")] = "",
    link: Annotated[bool, typer.Option("--link", help="Make a link; copy nothing.")] = False,
) -> None:
    """Copy a checkpoint into models/, and check the copy.

    Examples:
      sdbatch model import /mnt/usb/v1-5-pruned.ckpt
      sdbatch model import /data/v15.ckpt --link --as v15.ckpt

    Exit codes:
      0   it is in models/
      1   there is no such file, or the name exists in models/
      74  the disk failed
    """
    place, _ = configured(admins_root(root, "models"))
    if "/" in name or name.startswith("."):
        raise typer.BadParameter(here(Message("--as takes a name without folders")))
    with _bar("copying") as told:
        target = catalog.import_model(file, place, name, told, link=link)
    echo(Message("{target} is ready: jobs name it with `ckpt: {name}`", place.show(target), target.name))
    echo(Message("check it: sdbatch model verify {name}", target.name), err=True)


@model.command()
def verify(
    ckpt: CkptArgument, root: RootOption = Path(), *, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False
) -> None:
    """Check a checkpoint: every weight, and its config.

    It names weights that are missing, have the wrong shape, or are not
    numbers, and weights that nothing uses.

    Examples:
      sdbatch model verify v1-5-pruned.ckpt
      sdbatch model verify v21 --json

    Exit codes:
      0   it is complete and fits its config
      1   it does not, or can't be read
      69  there is no root
    """
    place, _ = open_root(root)
    place.require(place.inbox)
    found = place.find_weights(ckpt, config)
    from sdbatch.renderer import model_tools  # noqa: PLC0415 - torch

    with _bar("reading") as told:
        verified = model_tools.verify(found.ckpt, found.config, told)
    if as_json:
        typer.echo(json.dumps(asdict(verified) | {"is_whole": verified.is_whole}, indent=1))
        raise typer.Exit(0 if verified.is_whole else 1)
    fits = (
        Message("is whole and fits {config}", _config(place, found))
        if verified.is_whole
        else Message("does not fit {config}", _config(place, found))
    )
    echo(Message("{ckpt} {fits}", place.show(found.ckpt), fits))
    echo(
        Message(
            "  {weights} million weights are used, in {names}",
            f"{verified.weights / 1e6:,.0f}",
            ", ".join(verified.precisions),
        )
    )
    for kind, count in verified.beside.items():
        echo(Message("  not used: {kind} ({count} names)", kind, count))
    for title, names in (
        (Message("missing or of another shape"), verified.lacking),
        (Message("not numbers (nan or infinite)"), verified.broken),
        (Message("unexpected, not used"), verified.unexpected),
    ):
        _list(title, names)
    raise typer.Exit(0 if verified.is_whole else 1)


@model.command()
def convert(
    ckpt: CkptArgument,
    root: RootOption = Path(),
    *,
    config: ConfigOption = DEFAULT_CONFIG,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write a .safetensors file of your own.")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="The precision of the result.")] = "float32",
) -> None:
    """Convert a checkpoint before its first use.

    The result goes to state/models/, or with -o to a file of your own. It
    holds only the weights that are used, in one precision. float32 is for a
    CPU and for `precision: full`, float16 for `autocast` on a GPU.

    Examples:
      sdbatch model convert v1-5-pruned.ckpt --precision float16
      sdbatch model convert v15 -o v15.safetensors

    Exit codes:
      0   it is converted
      1   the checkpoint can't be used, or FILE exists
      69  there is no root
      74  the disk failed
    """
    place, settings = open_root(root)
    place.require(place.inbox)
    found = place.find_weights(ckpt, config)
    if output is not None and output.exists():
        raise JobError("{output} exists already; choose another name", output)
    from sdbatch.renderer import model_tools  # noqa: PLC0415 - torch
    from sdbatch.renderer.models.conversion import Conversions  # noqa: PLC0415 - torch

    dtype = model_tools.PRECISIONS[precision]
    with _bar("converting") as told:
        if output is not None:
            model_tools.convert_file(found.ckpt, found.config, output, dtype, told)
            target: Path | None = output
        else:
            kept = Conversions(place.state / "models", place.state / "checksums.json", settings.converted_bytes)
            target = model_tools.convert_ahead(found.ckpt, found.config, dtype, kept, told)
    if target is None:
        echo(Message("{ckpt} loads quickly as it is: it needs no conversion", place.show(found.ckpt)))
    else:
        typer.echo(place.show(target))


def _config(place: "Root", found: "ModelFiles") -> str:
    return Message("its own json files") if found.ckpt.is_dir() else place.show(found.config)


def _list(title: str, names: list[str]) -> None:
    if names:
        echo(Message("  {title}: {count}", title, len(names)))
        for name in names[:SHOWN]:
            echo(Message("    {name}", name))
        if len(names) > SHOWN:
            echo(Message("    and {count} more", len(names) - SHOWN))


@contextmanager
def _bar(what: str) -> "Iterator[Told]":
    """A bar on standard error, where that is a terminal."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
