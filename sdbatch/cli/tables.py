"""Images, jobs and their lineage in a terminal, or as lines for other programs."""

from collections.abc import Iterator
from datetime import datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sdbatch.errors import printable
from sdbatch.history.compare import Row
from sdbatch.history.records import JobRecord, Lineage, PictureRecord
from sdbatch.messages import Message, here
from sdbatch.operations.catalog import CatalogEntry
from sdbatch.spool import status_reader
from sdbatch.spool.status_reader import Facts
from sdbatch.storage.reason import message_of
from sdbatch.storage.root import Root
from sdbatch.telemetry.nodes import images_an_hour, lines


def show_pictures(pictures: list[PictureRecord], root: Root) -> None:
    """A table; in a pipe one line each: path, time, job, seed, prompt or reason, steps, scale, strength, with tabs."""
    console = Console(highlight=False)
    if not console.is_terminal:
        for each in pictures:
            said = each.reason if each.state == "failed" else each.prompt
            fields = (str(root.path / each.path), each.drawn_at, each.job, _said(each.seed), said, *_how(each))
            print("\t".join(_line(value) for value in fields))  # noqa: T201 - no folding, no markup
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(here(Message("generated")), no_wrap=True)
    table.add_column(here(Message("picture")), overflow="fold")
    for name in (Message("seed"), Message("steps"), Message("scale"), Message("strength")):
        table.add_column(here(name), justify="right", no_wrap=True)
    table.add_column(here(Message("prompt")), overflow="fold", ratio=1)
    for each in pictures:
        star = "★ " if each.favourite else ""
        is_failed = each.state == "failed"
        cell = Text(star + _why(each, root), "red") if is_failed else Text(star + printable(each.prompt))
        table.add_row(_local(each.drawn_at), Text(printable(each.path)), _said(each.seed), *_how(each), cell)
    console.print(table)


def show_compared(names: list[str], rows: list[Row]) -> None:
    """A column for each image, a row for each parameter; in a pipe the same with tabs."""
    console = Console(highlight=False)
    if not console.is_terminal:
        for title, values in [("", names), *((here(row.title), [*row.values]) for row in rows)]:
            print("\t".join(_line(value) for value in (title, *values)))  # noqa: T201
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", *names):
        table.add_column(Text(printable(name)), overflow="fold")
    for row in rows:
        table.add_row(here(row.title), *(Text(printable(value), "bold" * row.differs) for value in row.values))
    console.print(table)


def show_one(
    found: PictureRecord | JobRecord,
    particulars: list[tuple[str, str]],
    pictures: list[PictureRecord],
    tree: Lineage,
    root: Root,
) -> None:
    """Everything known about an image or a job."""
    console = Console(highlight=False)
    show_facts([*_facts(found, root), *particulars])
    if isinstance(found, JobRecord) and any(each.file for each in pictures):
        console.print(Text(here(Message("images")), "bold"))
        for each in pictures:
            own = f"  {each.prompt}" if each.prompt != found.prompt else ""
            console.print(Text(printable(f"  {each.number}  {each.path}{own}")), soft_wrap=True)
    if tree.children or not tree.is_asked:
        console.print(Text(here(Message("lineage")), "bold"))
        for line in _lines(tree):
            console.print(line, soft_wrap=True)


def show_facts(facts: list[tuple[str, str]]) -> None:
    """One line for each name and value."""
    console = Console(highlight=False)
    for name, value in facts:
        title = Text(here(name).lower(), "bold")
        title.pad_right(max(18 - title.cell_len, 1))
        console.print(title + printable(here(value)), soft_wrap=True)


def show_models(models: list[CatalogEntry]) -> None:
    """A table; in a pipe one line each with tabs: name, path, bytes, precisions of its conversions."""
    console = Console(highlight=False)
    if not console.is_terminal:
        for each in models:
            print("\t".join(_line(v) for v in (each.name, each.path, str(each.size), ",".join(each.converted))))  # noqa: T201
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(here(Message("ckpt")), overflow="fold")
    table.add_column(here(Message("size")), justify="right", no_wrap=True)
    table.add_column(here(Message("converted")), no_wrap=True)
    table.add_column(here(Message("file")), overflow="fold")
    for each in models:
        size = Text(here(Message("missing")), "red") if each.kind == "missing" else Text(f"{each.size / 1e9:.1f} GB")
        table.add_row(Text(printable(each.name)), size, ", ".join(each.converted), Text(printable(each.path)))
    console.print(table)


def show_seats(seats: list[Facts]) -> None:
    """A table by node; in a pipe one line each with tabs: name, state, jobs, model, images an hour, restarts."""
    console = Console(highlight=False)
    rows = [
        (
            str(seat.get("name")),
            str(seat.get("state")),
            ",".join(map(str, seat.get("jobs") or ())),
            status_reader.model_of(seat),
            str(images_an_hour([seat]) or ""),
            str(seat.get("restarts") or ""),
            str(seat.get("problem") or ""),
        )
        for seat in seats
    ]
    if not console.is_terminal:
        for row in rows:
            print("\t".join(_line(value) for value in row))  # noqa: T201
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = (Message("device"), Message("state"), Message("jobs"), Message("model"))
    for name in (*names, Message("images an hour"), Message("restarts"), Message("problem")):
        table.add_column(here(name), overflow="fold")
    for row, seat in zip(rows, seats, strict=True):
        told = here(seat.get("problem") or "")
        table.add_row(row[0], here(row[1]), *row[2:6], Text(printable(told), "red"))
    console.print(table)
    for line in lines(seats):
        console.print(Text(printable(here(line)), "bold"), soft_wrap=True)


def _facts(found: PictureRecord | JobRecord, root: Root) -> Iterator[tuple[str, str]]:
    if isinstance(found, JobRecord):
        yield Message("job"), found.id
        yield Message("folder"), str(root.path / found.folder)
    else:
        yield Message("picture"), str(root.path / found.path)
        yield Message("job"), Message("{job}, image {number}", found.job, found.number)
        yield Message("published"), found.published or ""
        if found.favourite:
            yield Message("favourite"), Message("yes")
        if found.tags:
            yield Message("tags"), ", ".join(found.tags)
    yield Message("state"), found.state
    if found.reason:
        yield Message("reason"), _why(found, root)
    yield Message("generated"), _local(found.drawn_at)
    told = [
        (Message("prompt"), found.prompt),
        (Message("negative prompt"), found.negative),
        (Message("name"), found.name),
        (Message("kind"), found.kind),
        (Message("checkpoint"), found.ckpt),
        (Message("seed"), _said(found.seed)),
        (Message("size"), f"{found.width}x{found.height}" if found.width else ""),
        (Message("came from"), " ".join(filter(None, (found.parent_job, found.parent_picture)))),
    ]
    yield from ((name, value) for name, value in told if value)


def _why(failed: PictureRecord | JobRecord, root: Root) -> str:
    job = failed.id if isinstance(failed, JobRecord) else failed.job
    return printable(here(message_of(root.failed / job, failed.reason)))


def _lines(job: Lineage, depth: int = 0) -> Iterator[Text]:
    """One line each, indented by depth, without a frame, which would be cut at the terminal's edge."""
    if job.above:
        yield Text(here(Message("... {number} more above", job.above)))
    yield Text("  " * depth).append_text(_node(job))
    for child in job.children:
        yield from _lines(child, depth + 1)
    if job.more:
        yield Text(f"{'  ' * (depth + 1)}... {job.more} more")


def _node(job: Lineage) -> Text:
    start = here(Message("from {picture}: ", job.picture)) if job.picture else ""
    gone = f" ({job.state})" if job.state in ("gone", "failed") else ""
    said = _line(job.prompt)
    said = f"  {said[:60]}..." if len(said) > 63 else f"  {said}"
    return Text(printable(f"{start}{job.job}{gone}{said if job.prompt else ''}"), "bold" if job.is_asked else "")


def _line(value: str) -> str:
    """On one line, without tabs."""
    return printable(" ".join(value.split()))


def _how(picture: PictureRecord) -> tuple[str, str, str]:
    return _said(picture.steps), _said(picture.scale), _said(picture.strength)


def _said(number: float | None) -> str:
    return "" if number is None else f"{number:.10g}" if isinstance(number, float) else str(number)


def _local(moment: str) -> str:
    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M")
