"""The screen of `sdbatch status`, and the progress bars of `sdbatch serve`."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic, sleep
from typing import Any, Self

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sdbatch.errors import printable
from sdbatch.messages import Message, here, joined, lines
from sdbatch.spool.status_reader import RESTING, Facts, model_of, read_overview, seconds_since
from sdbatch.storage.root import Root
from sdbatch.telemetry import nodes
from sdbatch.telemetry.status_file import duration

BARS = 8  # of jobs in flight
QUEUED = 10  # lines of the queue
FILES = 5  # that stay in the inbox, or are no jobs
REASON_LINES = 3
REDRAW_SECONDS = 0.2
WATCH_SECONDS = 1.0  # as often as the service writes
LEAST_BAR = 8
COLOURS = {"drawing": "green", "paused": "red", "ended without a word": "red", "stopped": "yellow"}


def show(root: Root, now: datetime) -> None:
    """Print it once: in colours on a terminal, else as plain lines that are not wrapped."""
    console = Console(highlight=False)
    facts = read_overview(root, now)
    console.print(_screen(facts, now, with_bar=console.is_terminal), soft_wrap=not console.is_terminal)


def watch(root: Root) -> None:
    """Update it until Ctrl-C."""
    with Live(console=Console(highlight=False), auto_refresh=False, screen=True, vertical_overflow="ellipsis") as live:
        while True:
            now = datetime.now(UTC)
            live.update(_screen(read_overview(root, now), now, with_bar=True), refresh=True)
            sleep(WATCH_SECONDS)


class Bar:
    """The jobs in flight at the bottom of a terminal, below the log; updated when the service reports facts."""

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True, highlight=False)
        self.live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)
        self._drawn = float("-inf")

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError, ValueError):  # the terminal was closed
            self.live.stop()

    def show(self, facts: Facts) -> None:
        """Show the facts that the service reported now."""
        if monotonic() - self._drawn < REDRAW_SECONDS:
            return
        self._drawn = monotonic()
        with suppress(OSError, ValueError):  # the terminal was closed: the service goes on
            self.live.update(Group(*_bars(facts)), refresh=True)


def _bars(facts: Facts) -> Iterator[RenderableType]:
    """What is in flight, what is wrong with devices, and what else waits."""
    jobs, seats = facts.get("jobs") or [], facts.get("seats") or []
    if not jobs:
        problem = facts.get("problem")
        yield _text(Message("{state}: {problem}", _state(facts), problem) if problem else _state(facts))
        return
    for job in jobs[:BARS]:
        place = f"{job.get('seat')}  " * (len(seats) > 1)
        yield _BarLine(job, f"{place}{job.get('name') or job['id']}: {_flat(job.get('prompt'))}")
    if len(jobs) > BARS:
        yield _text(Message("      and {number} more", len(jobs) - BARS))
    yield from (_text(_seat(seat), "red") for seat in seats if seat.get("problem"))
    if facts.get("queue"):
        yield next(_queue(facts["queue"]))


def _screen(facts: Facts, now: datetime, *, with_bar: bool) -> Group:
    parts: list[RenderableType] = [_service(facts, now)]
    if facts.get("problem"):
        since = facts.get("problem_since")
        held = Message(", for {time}", duration(seconds_since(since, now))) if since else ""
        what, style = (
            (Message("a job waits"), "yellow") if facts["job"] else (Message("nothing is generated"), "bold red")
        )
        if facts.get("state") == RESTING:
            style = "yellow"
        parts.append(_text(Message("{what}{since}: {problem}", what, held, facts["problem"]), style))
    if facts.get("configuration"):
        parts.append(
            _text(
                Message(
                    "the new configuration is wrong and not used: {problem}",
                    facts["configuration"],
                ),
                "red",
            )
        )
    if facts["is_running"]:
        parts.append(_text(Message("the inbox {state}", facts.get("inbox"))))
    for job in facts["jobs"][:BARS]:
        parts += [Text(), *_job(job, with_bar=with_bar, is_one=len(facts["seats"]) < 2)]
    if len(facts["jobs"]) > BARS:
        parts.append(_text(Message("      and {number} more", len(facts["jobs"]) - BARS)))
    parts += _seats(facts["seats"])
    parts += [Text(), *_queue(facts["queue"])]
    if facts["empty"]:
        parts.append(_text(Message("still empty; taken once they have content: {names}", ", ".join(facts["empty"]))))
    parts += _listed(facts["unmovable"], facts["unmovable_count"], Message("stays in the inbox"), "red")
    parts += _listed(facts["no_jobs"]["files"], facts["no_jobs"]["count"], Message("not a job"), "yellow")
    if facts["failures"]:
        parts += [Text(), _text(Message("failed last"), "bold"), *_failures(facts["failures"], now)]
    return Group(*parts)


def _service(facts: Facts, now: datetime) -> Text:
    state = _state(facts)
    heard = seconds_since(facts.get("updated_at"), now)
    ago = Message(", last heard of {time} ago", duration(heard)) if heard < float("inf") else ""
    who = (
        Message("sdbatch {version} on {host}, pid {pid}", facts["version"], facts.get("host"), facts.get("pid"))
        if facts.get("version")
        else ""
    )
    if not facts["is_running"]:
        text, who = Message("the service is not running: {state}{ago}", state, ago), ""
    else:
        text = Message(
            "{state} ({who}; {done} done and {failed} failed since its start)",
            state,
            who,
            facts.get("done"),
            facts.get("failed"),
        )
    return _text(text, f"bold {COLOURS.get(state, '')}".strip())


def _job(job: Facts, *, with_bar: bool, is_one: bool) -> Iterator[RenderableType]:
    """A job in flight; `is_one`: there is only one device, which needs no name."""
    said = Message("generating {job}, attempt {number}", _name(job), job.get("attempt"))
    seat = job.get("seat")
    yield _text(said if is_one or not seat else Message("{job}, on {device}", said, seat), "bold")
    if job.get("prompt"):
        yield _line(f"  {_flat(job['prompt'])}")
    yield _BarLine(job) if with_bar else _text("  " + _pictures(job))


def _seats(seats: list[Facts]) -> Iterator[Text]:
    """One line for each; of a cluster one for each node, and those seats with which something is wrong."""
    if seats:
        yield Text()
    by_node = nodes.lines(seats)
    yield from map(_text, by_node)
    for seat in seats:
        if seat.get("problem") or not by_node:
            yield _text(_seat(seat), "red" if seat.get("problem") else "")


def _seat(seat: Facts) -> str:
    """A device on one line: what it does, with which model, how fast, and what befell it."""
    told: list[str] = [Message(str(seat.get("state")))]
    if model := model_of(seat):
        told.append(model)
    if speed := _number(seat.get("pictures_a_minute")):
        told.append(Message("{number} images a minute", f"{speed:g}"))
    if (loads := _number(seat.get("loads"))) > 1:
        told.append(Message("loaded a model {number} times", int(loads)))
    if restarts := _number(seat.get("restarts")):
        told.append(Message("started again {number} times", int(restarts)))
    if seat.get("problem"):
        told.append(seat["problem"])
    return Message("{device}: {problem}", seat.get("name"), joined(", ", told))


@dataclass
class _BarLine:
    """A job's progress on one line. If it is too long, the name is cut first, then the bar."""

    job: Facts
    label: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        told = here(_pictures(self.job))
        label = _text(self.label)
        label.truncate(max(options.max_width - len(told) - LEAST_BAR - 2, 0), overflow="ellipsis")
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(no_wrap=True)
        row.add_column(ratio=1, min_width=LEAST_BAR)
        row.add_column(no_wrap=True, overflow="ellipsis")
        row.add_row(label, ProgressBar(total=1.0, completed=_number(self.job.get("fraction"))), _text(told))
        yield row


def _pictures(job: Facts) -> str:
    left = job.get("eta_seconds")
    eta = Message(", {time} left", duration(_number(left))) if left is not None else ""
    step = Message(", step {step} of {steps}", job.get("step"), job.get("steps")) if job.get("step") else ""
    return Message("{done} of {all} images{step}{left}", job.get("pictures_done"), job.get("pictures"), step, eta)


def _queue(queue: Facts) -> Iterator[Text]:
    total = queue["claimed"] + queue["ready"] + queue["settling"]
    more = [Message("{number} images", queue["pictures"])] if total and queue["pictures"] else []
    more += [Message("{number} still arriving", queue["settling"])] if queue["settling"] else []
    more += [Message("{number} waiting for files", queue["waiting_for_files"])] if queue["waiting_for_files"] else []
    said = Message("queue: {number}", total) if total else Message("queue: empty")
    said = said + Message(" ({details})", joined(", ", more)) if more else said
    left = queue["eta_seconds"]
    yield _text(Message("{queue}; all is done in about {time}", said, duration(left)) if left else said, "bold")
    shown = queue["next"][:QUEUED]
    for number, entry in enumerate(shown, 1):
        yield _line(f"{number:>4}  {entry.get('file') or entry.get('id')}{_asked(entry)}")
    if total > len(shown):
        yield _text(Message("      and {number} more", total - len(shown)))


def _asked(entry: Facts) -> str:
    """What a waiting job asks for, as far as the service has read it."""
    if not _number(entry.get("pictures")):
        return ""
    jobs = int(_number(entry.get("jobs")))
    said = Message("{number} images", int(_number(entry["pictures"])))
    said = Message("{pictures} of {number} jobs", said, jobs) if jobs > 1 else said
    return Message("  {pictures}: {prompt}", said, _flat(entry.get("prompt")))


def _flat(prompt: object) -> str:
    """A prompt as a part of a line."""
    return " ".join(str(prompt).split())


def _listed(files: dict[str, str], count: int, what: str, style: str) -> Iterator[Text]:
    """The first of some files with a note each, and the number of the others."""
    shown = [*files.items()][:FILES]
    for name, why in shown:
        yield _text(Message("{what}: {name}: {problem}", what, name, why), style)
    if count > len(shown):
        yield _text(Message("      and {number} more", count - len(shown)), style)


def _failures(failures: list[Facts], now: datetime) -> Iterator[Text]:
    for failure in failures:
        yield _text(Message("  {job}, {time} ago", failure["id"], duration(seconds_since(failure["failed_at"], now))))
        told = lines(failure["reason"])
        for line in told[:REASON_LINES]:
            yield _text("      " + line, "red")
        if len(told) > REASON_LINES:
            yield _text("      ...")


def _state(facts: Facts) -> str:
    """One of ours, or whatever another version wrote."""
    return Message(str(facts.get("state")))


def _name(job: Facts) -> str:
    return f"{job['name']} ({job['id']})" if job.get("name") else str(job["id"])


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _line(text: str) -> Text:
    """What is cut off at the end of a terminal's line."""
    line = _text(text)
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _text(text: str, style: str = "") -> Text:
    """Text without markup or control characters."""
    return Text(printable(here(text)), style=style)
