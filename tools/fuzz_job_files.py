"""Hostile job files by the hundred thousand, through the parser that the service uses.

    python tools/fuzz_job_files.py --raw 100000 --structured 10000 [--seed 1] [--out FILE]

Raw inputs are noise and mutations of real and hostile job files; structured ones are whole job files from the schema,
right, nearly right and wrong (tests/job_files.py). Each must become jobs, or errors that name a place, within a second
of processor time, without opening a file or starting anything.

The parser works in a child, which writes each input down before it tries it, and which the system's own alarm ends: so
a crash of the C library or a hang inside it is found like any exception, and told with the input that did it. Inputs
that found something are kept in --findings, and make the exit code 1. The same seed gives the same inputs.
"""

import argparse
import itertools
import multiprocessing
import random
import re
import resource
import shlex
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import hypothesis
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from job_files import EXAMPLES, EXTENSIONS, check, job_files
from mangled_files import mangled

from sdbatch.job.reader import Parsed

Check = Callable[[bytes, str], list[Parsed]]

SECONDS = 1.0  # of the processor, for one input
CHUNK = 5_000  # inputs to a child
CHUNK_SECONDS = 1_800.0  # of the clock: a child that waits for something uses no processor


@dataclass
class Tally:
    """What came of some inputs."""

    tried: int = 0
    drawable: int = 0  # inputs with at least one valid job
    jobs: int = 0
    errors: Counter[str] = field(default_factory=Counter)  # by their shape
    slowest: tuple[float, int] = 0.0, 0  # seconds of the processor, bytes
    largest: int = 0
    memory: int = 0  # kB, at most, of a child
    findings: list[tuple[str, str, bytes]] = field(default_factory=list)  # what, the file's name, its bytes

    def add(self, other: "Tally") -> None:
        """Take another's figures in."""
        self.tried += other.tried
        self.drawable += other.drawable
        self.jobs += other.jobs
        self.errors += other.errors
        self.slowest = max(self.slowest, other.slowest)
        self.largest = max(self.largest, other.largest)
        self.memory = max(self.memory, other.memory)
        self.findings += other.findings


def raw(seed: int, count: int, take: Callable[[str, bytes], None]) -> None:
    """Try raw inputs."""
    chance = random.Random(seed)
    for _ in range(count):
        take(f"job.{chance.choice(EXTENSIONS)}", mangled(chance))


def structured(seed: int, count: int, take: Callable[[str, bytes], None]) -> None:
    """Try whole job files."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(job_files())
    def try_it(file: tuple[str, bytes]) -> None:
        take(*file)

    try_it()


KINDS = {"raw": raw, "structured": structured}


class Trial:
    """Parses one input after another in a child, and keeps count."""

    def __init__(self, examine: Check, journal: Path, seconds: float) -> None:
        self.examine, self.journal, self.seconds = examine, journal, seconds
        self.tally = Tally()
        self.touched: list[str] | None = None  # what the parser did beyond parsing; None: it is not at work
        sys.addaudithook(self._audit)

    def _audit(self, event: str, _: tuple[object, ...]) -> None:
        if self.touched is not None and event.partition(".")[0] in {"open", "os", "subprocess", "socket", "shutil"}:
            self.touched.append(event)

    def take(self, name: str, data: bytes) -> None:
        """Try an input. The alarm has no handler: it ends the process even inside the C library."""
        self.journal.write_bytes(name.encode() + b"\n" + data)
        tally = self.tally
        tally.tried += 1
        tally.largest = max(tally.largest, len(data))
        entries, wrong = [], ""
        self.touched = []
        signal.setitimer(signal.ITIMER_PROF, self.seconds)
        start = time.process_time()
        try:
            entries = self.examine(data, name)
        except Exception as error:  # noqa: BLE001 - any of them is what is looked for
            wrong = repr(error)
        seconds = time.process_time() - start
        signal.setitimer(signal.ITIMER_PROF, 0)
        touched, self.touched = self.touched, None
        if wrong or touched:
            tally.findings.append((wrong or f"touched something: {touched}", name, data))
        tally.slowest = max(tally.slowest, (seconds, len(data)))
        jobs = sum(entry.job is not None for entry in entries)
        tally.jobs += jobs
        tally.drawable += jobs > 0
        tally.errors.update(
            shape(line.removeprefix(f"{name}: "))
            for entry in entries
            if entry.error
            for line in str(entry.error).split("\n")
        )


def shape(error: str) -> str:
    """An error without what is particular to one file."""
    told = re.sub(r"^line \d+(, column \d+)?: ", "", error)
    for words in (
        "there is no such field; did you mean",
        "there is no such field; fields are",
        "holds half a character",
    ):
        if words in told:
            told = f"FIELD: {words} ..."
    told = re.sub(r"^.*: .* is not (?=[a-z])", "FIELD: VALUE is not ", told)
    told = re.sub(r"^.*(?=: (is given twice|[^:]* is given twice in it))", "FIELD", told)
    return re.sub(r"\(U.*\)|[-+]?\d[\d,.]*", "N", told)[:100]


def child(kind: str, seed: int, count: int, examine: Check, journal: Path, seconds: float, answer: Connection) -> None:
    """A chunk of inputs, in a process of its own."""
    for data, extension in itertools.product(EXAMPLES, EXTENSIONS):
        check(data, f"job.{extension}")  # what Python imports on the first use is no finding
    trial = Trial(examine, journal, seconds)
    KINDS[kind](seed, count, trial.take)
    trial.tally.memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer.send(trial.tally)


def chunks(count: int) -> Iterator[int]:
    """`count` in pieces of at most CHUNK."""
    yield from (min(CHUNK, count - done) for done in range(0, count, CHUNK))


def fuzz(kind: str, count: int, seed: int, examine: Check = check, seconds: float = SECONDS) -> Tally:
    """Try `count` inputs of a kind; what a dead child had left of its chunk stays untried."""
    total = Tally()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "input"
        for number, size in enumerate(chunks(count)):
            journal.write_bytes(b"none yet\n")
            ours, theirs = spawn.Pipe(duplex=False)
            process = spawn.Process(
                target=child, args=(kind, seed * 10_000 + number, size, examine, journal, seconds, theirs)
            )
            process.start()
            theirs.close()
            try:
                if not ours.poll(CHUNK_SECONDS):
                    process.kill()
                total.add(ours.recv())
            except EOFError:
                process.join()
                name, _, data = journal.read_bytes().partition(b"\n")
                what = f"over {seconds} s" if process.exitcode == -signal.SIGPROF else f"exit {process.exitcode}"
                total.add(Tally(tried=1, findings=[(what, name.decode(), data)]))
            process.join()
    return total


def summary(kind: str, tally: Tally) -> Iterator[str]:
    """The figures of a kind, as lines."""
    seconds, size = tally.slowest
    yield f"{kind}: {tally.tried:,} inputs of up to {tally.largest:,} bytes"
    yield f"  {tally.drawable:,} with a valid job ({tally.jobs:,} jobs), {tally.tried - tally.drawable:,} without"
    yield f"  slowest {seconds:.3f} s of the processor ({size:,} bytes); at most {tally.memory / 1024:.0f} MB of memory"
    yield f"  crashes, hangs over {SECONDS} s, and answers that are none: {len(tally.findings)}"
    yield f"  errors told: {tally.errors.total():,}, of {len(tally.errors)} shapes; the commonest:"
    yield from (f"  {number:9,}  {told}" for told, number in tally.errors.most_common(25))


def main() -> int:
    """Fuzz, print and record the summary; 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=int, default=100_000)
    parser.add_argument("--structured", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a file for the summary")
    parser.add_argument("--findings", type=Path, default=Path("findings"), help="a folder, made when there are any")
    asked = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("pyyaml", "pydantic", "hypothesis"))
    assert yaml.__with_libyaml__, "the service's parser is libyaml's"
    lines = [
        f"$ python {shlex.join(sys.argv)}",
        f"{datetime.now(UTC):%Y-%m-%d}, seed {asked.seed}, Python {sys.version.split()[0]}, {packages}",
    ]
    found = 0
    for kind in KINDS:
        tally = fuzz(kind, getattr(asked, kind), asked.seed)
        lines += ["", *summary(kind, tally)]
        for number, (what, name, data) in enumerate(tally.findings, found + 1):
            asked.findings.mkdir(exist_ok=True)
            kept = asked.findings / f"{number}-{name}"
            kept.write_bytes(data)
            lines.append(f"  FOUND {kept}: {what}")
        found += len(tally.findings)
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if asked.out:
        asked.out.write_text(text)
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
