"""`sdbatch history`, `show`, `restore`, `follow-up` and `rerun`: search earlier images, and continue from them.

They only read and submit files, so they work over a share, and while the service is down.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sdbatch.cli.common import JsonOption, RootOption, SetOption, app, echo, named_root
from sdbatch.errors import JobError, printable
from sdbatch.history import times
from sdbatch.history.records import JobRecord, PictureRecord
from sdbatch.messages import Message, here
from sdbatch.spool import status_reader
from sdbatch.storage import files, marks
from sdbatch.storage.spelling import as_stored

if TYPE_CHECKING:
    from sdbatch.history.history import History
    from sdbatch.storage.root import Root

WhatArgument = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE|JOB", help="An image's path, JOB/NUMBER such as 000042/2, or a job's id or a part of it."
    ),
]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Print the job file; submit nothing.")]


@app.command()
def history(  # noqa: PLR0913 - each is an option
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="WORDS", help="Words of the prompt or of a file name; all must match."),
    ] = None,
    root: RootOption = Path(),
    *,
    since: Annotated[str, typer.Option(help="Not older than this: 2026-11-20, 12h, 3d.")] = "",
    seed: Annotated[int | None, typer.Option(metavar="N", help="Only this seed.")] = None,
    ckpt: Annotated[str | None, typer.Option(help="Only this checkpoint: its path or its name.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only txt2img or img2img.")] = None,
    sampler: Annotated[str | None, typer.Option(help="Only this sampler, such as dpmpp_2m.")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Only this size, such as 512x768.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only with this tag.")] = None,
    favourites: Annotated[bool, typer.Option("--favourites", help="Only favourites.")] = False,
    oldest: Annotated[bool, typer.Option("--oldest", help="Oldest first.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Failed jobs, with the reason.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, metavar="N", help="Show at most this many images.")] = 50,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Read all folders again first.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Search all images, newest first (or oldest, with --oldest).

    The words are searched in the prompts, in the name of the job and of its
    file, and in the path of the image. Each word matches words that start
    with it, with or without accents. Chinese matches anywhere. Images of
    other programs in outputs/ are found too. In a pipe each result is one
    line that starts with the path.

    Examples:
      sdbatch history blue truck --since 3d
      sdbatch history 猫 --json
      sdbatch history --favourites --tag "for print"
      sdbatch history --failed
      sdbatch history truck | cut -f1 | head -1
      sdbatch history --rebuild

    Exit codes:
      0   found
      1   nothing was found
      2   an option has an invalid value
      69  there is no root
    """
    from sdbatch.cli import tables  # noqa: PLC0415 - rich
    from sdbatch.job.samplers import resolve  # noqa: PLC0415 - beside pydantic

    if kind not in (None, "txt2img", "img2img"):
        raise typer.BadParameter(here(Message("--kind must be txt2img or img2img")))
    place = named_root(root)
    drawn = times.since(since, datetime.now(UTC)) if since else None
    opened = open_history(place, anew=rebuild)
    narrowed: dict[str, Any] = {
        "sampler": (resolve(sampler) or [sampler])[0] if sampler else None,
        "size": size,
        "tag": tag and marks.tag_of(tag),
        "favourites": favourites,
    }
    narrowed |= {"since": drawn, "seed": seed, "ckpt": ckpt, "kind": kind, "failed": failed, "oldest_first": oldest}
    search = partial(opened.search, " ".join(words or []), **narrowed)
    found = search(limit=limit)
    if as_json:
        typer.echo(json.dumps([asdict(picture) for picture in found], ensure_ascii=False, indent=1))
    else:
        tables.show_pictures(found, place)
    if not found and not as_json:
        echo(Message("nothing was found"), err=True)
        for said in _unknown(opened, {"sampler": narrowed["sampler"], "tag": narrowed["tag"]}):
            echo(said, err=True)
    if found.rest is not None and search(before=found.rest, limit=1):
        echo(
            Message(
                "these are the oldest {count}; see more with --limit {limit}"
                if oldest
                else "these are the newest {count}; see more with --limit {limit}",
                len(found),
                10 * limit,
            ),
            err=True,
        )
    raise typer.Exit(0 if found or (rebuild and not words) else 1)


def _unknown(opened: "History", asked: dict[str, Any]) -> Iterator[str]:
    """The values of filters that no image has, each with the likely one or all that there are."""
    from sdbatch.job.messages import likely  # noqa: PLC0415 - pydantic

    for name, value in asked.items():
        known = opened.tags() if name == "tag" else opened.samplers()
        if value and known and not opened.search("", limit=1, **{name: value}):
            near = likely(value, known)
            hint = Message("did you mean {name}?", near) if near else Message("there are {names}", ", ".join(known))
            yield Message("--{field}: no image has {value}; {instead}", name, value, hint)


@app.command()
def show(what: WhatArgument, root: RootOption = Path(), *, as_json: JsonOption = False) -> None:
    """Show all parameters of an image or job, and related jobs.

    The tree shows which image it started from, and its follow-ups. For an
    image file of any other program it shows what the file itself contains.

    Examples:
      sdbatch show 000042
      sdbatch show 000042/2
      sdbatch show outputs/trucks/samples/00007.png --json
      sdbatch show ~/Downloads/cat.jpg

    Exit codes:
      0  shown
      1  there is none, or several ids contain this text
    """
    from sdbatch.cli import tables  # noqa: PLC0415
    from sdbatch.history import describe, lineage  # noqa: PLC0415

    place = named_root(root)
    found = _find_or_file(place, what)
    if isinstance(found, Path):
        facts, notes = describe.of_file(place, found)
        if as_json:
            typer.echo(
                json.dumps(
                    {name.lower(): value for name, value in facts} | {"notes": notes}, ensure_ascii=False, indent=1
                )
            )
        else:
            tables.show_facts([*facts, *(("note", note) for note in notes)])
        return
    opened = open_history(place)
    job_id = found.job
    pictures, tree = opened.pictures_of(job_id), lineage.lineage(opened, job_id)
    if as_json:
        told = {**asdict(found), "pictures": [asdict(picture) for picture in pictures], "lineage": asdict(tree)}
        typer.echo(json.dumps(told, ensure_ascii=False, indent=1))
    else:
        facts = describe.parameters(place, found) + describe.circumstances(place, found)
        tables.show_one(found, facts, pictures, tree, place)


@app.command()
def restore(
    what: WhatArgument,
    root: RootOption = Path(),
    *,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write to this file.")] = None,
) -> None:
    """Print the job file that an image or job was made with.

    It is read from the job's folder, from the image itself, from a
    setup.json beside it, or from another program's parameters. Standard
    error names the settings that can't be used here.

    Examples:
      sdbatch restore 000042 > truck.yaml
      sdbatch restore ~/Downloads/cat.png -o cat.yaml

    Exit codes:
      0  written
      1  no parameters were found, or FILE exists
    """
    from sdbatch.history import restore  # noqa: PLC0415

    place = named_root(root)
    restored = restore.restore(place, _find_or_file(place, what))
    for note in restored.notes:
        echo(Message("note: {note}", note), err=True)
    if output is None:
        typer.echo(restored.text, nl=False)
        return
    if output.exists():
        raise JobError("{output} exists already", output)
    files.write_atomically(output, restored.text.encode())
    typer.echo(output)


@app.command(name="follow-up")
def follow_up(
    picture: WhatArgument,
    root: RootOption = Path(),
    *,
    prompt: Annotated[str | None, typer.Option(help="The new prompt. Default: the old one.")] = None,
    strength: Annotated[float | None, typer.Option(help="How much to change the image, 0 to 1. Default: 0.75.")] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed.")] = None,
    settings: SetOption = [],  # noqa: B006 - typer's own
    dry_run: DryOption = False,
) -> None:
    """Submit an img2img job that starts from an image.

    Example:
      sdbatch follow-up 000042/2 --prompt "add a spider-man" --strength 0.6

    Exit codes:
      0   submitted
      1   there is no such image, or a value is invalid
      74  the disk failed
    """
    from sdbatch.history import restore  # noqa: PLC0415

    place = named_root(root)
    opened = open_history(place)
    found = _find(opened, picture)
    if isinstance(found, JobRecord):
        pictures = [each for each in opened.pictures_of(found.id) if each.file]
        if len(pictures) != 1:
            raise JobError("{id} has {count} images; say which: {id}/0", found.id, len(pictures))
        found = pictures[0]
    fields = {} if seed is None else {"seed": seed}
    text = restore.follow_up(place, opened, found, prompt, strength, **fields)
    _drop(place, _with(text, settings), found.job, "follow-up", dry_run=dry_run)


@app.command()
def rerun(
    job: WhatArgument,
    root: RootOption = Path(),
    *,
    seed: Annotated[int | None, typer.Option(help="Another seed, for other images.")] = None,
    settings: SetOption = [],  # noqa: B006 - typer's own
    dry_run: DryOption = False,
) -> None:
    """Submit a job again: the same images, or others with --seed.

    JOB/NUMBER draws that image alone if it has its own seed (seeding: picture).

    Examples:
      sdbatch rerun 000042 --seed 7
      sdbatch rerun 000042 --set scale=[5,7.5,10]
      sdbatch rerun 000042/7

    Exit codes:
      0   submitted
      1   there is no such job
      74  the disk failed
    """
    from sdbatch.history import restore  # noqa: PLC0415

    place = named_root(root)
    opened = open_history(place)
    found = _find(opened, job)
    if count := restore.draws_more(place, opened, found):
        note = "note: the images of {job} come from one seed: all {count} are drawn"
        echo(Message(note, found.job, count), err=True)
    _drop(place, _with(restore.rerun(place, found, seed), settings), found.job, "rerun", dry_run=dry_run)


def _with(text: str, settings: list[str]) -> str:
    """A job file with these fields, checked."""
    from sdbatch.client.setting import with_settings  # noqa: PLC0415
    from sdbatch.history.restore import checked  # noqa: PLC0415

    return checked(with_settings(text.encode(), "job.yaml", settings).decode()) if settings else text


def open_history(place: "Root", *, anew: bool = False) -> "History":
    """The history of a root; a note says what it lacks."""
    from sdbatch.history.history import History  # noqa: PLC0415

    status_reader.check_root(place)
    opened = History(place) if anew else History.open(place)
    if anew:
        echo(Message("read {count} jobs again", opened.rebuild()), err=True)
    if opened.stale:
        echo(Message("note: {problem}: the newest images may be missing", opened.stale), err=True)
    for why in opened.passed_over:
        echo(Message("note: {why}", printable(why)), err=True)
    return opened


def find_picture_names(opened: "History", named: list[str]) -> list[PictureRecord]:
    """The images that a person named, and all of a named job.

    Raises:
        JobError: there is none of a name, or there are several.
    """
    found = [_find(opened, name) for name in named]
    several = ([one] if isinstance(one, PictureRecord) else opened.pictures_of(one.id) for one in found)
    return [picture for some in several for picture in some if picture.file]


def _find(opened: "History", named: str) -> "PictureRecord | JobRecord":
    """Find what a person named: a path relative to the current folder or to the root, or an id."""
    if not named.strip():
        raise JobError("give an image or a job")
    path = as_stored(Path(os.path.abspath(Path(named).expanduser())))  # noqa: PTH100 - a link keeps its name
    return opened.find(opened.root.show(path) if path.exists() else named)


def _find_or_file(place: "Root", named: str) -> "PictureRecord | JobRecord | Path":
    """The same, or a file that is not in the history; that needs no root."""
    path = as_stored(Path(named).expanduser())
    try:
        return _find(open_history(place), named)
    except JobError:
        if named.strip() and path.exists():
            return path
        raise


def _drop(place: "Root", text: str, job_id: str, ending: Literal["rerun", "follow-up"], *, dry_run: bool) -> None:
    from sdbatch.client.validate import submit_text  # noqa: PLC0415
    from sdbatch.spool.job_names import next_name  # noqa: PLC0415

    if dry_run:
        typer.echo(text, nl=False)
        return
    typer.echo(submit_text(text, next_name(place, job_id, ending), place))
