"""How fast a million pictures are searched, added to and read again, and how large their index is.

    python benchmarks/history.py [--pictures 1000000] [--folders 5000] [--place DIR]

The pictures are made up, with words as frequent as those of a language (the n-th has a frequency of 1/n), two
prompts in five Chinese. Twice: as jobs of six pictures with one prompt, and, the most that can be asked of an index,
each with a prompt of its own. Searching is `History.search` with pages of 100, a hundred times each, the first apart.
Adding is `History.add` of a finished job's folder, with its manifest. Reading again is that of real job folders; and
that of jobs which published under the same names one after another, as where outputs/ is emptied each night.
"""

import argparse
import math
import os
import random
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from harness import make_root

import sdbatch
from sdbatch.history import index
from sdbatch.history.database import DATABASE
from sdbatch.history.history import History
from sdbatch.history.scan import JobEntry, PictureEntry
from sdbatch.job.manifest import Manifest, Picture
from sdbatch.storage.root import Root
from sdbatch.web.site import PATIENCE

NOW = datetime(2026, 11, 22, tzinfo=UTC)
KNOWN = ("painting", "photograph", "spaceship")  # where they stand is chosen
HAN = [chr(0x4E00 + 7 * n) for n in range(2500)]
CKPTS = ["models/ldm/stable-diffusion-v1/model.ckpt", "models/v1-5-pruned.safetensors", "models/anime.ckpt"]
PAGE, REPEATS = 100, 100
Search = dict[str, object]


class Prompts:
    """Prompts of twenty words, or of forty Chinese characters, by Zipf's law; some words stand where they are known."""

    def __init__(self) -> None:
        self.random = random.Random(1)
        merges = (Path(sdbatch.__file__).parent / "data/clip/merges.txt").read_text(encoding="utf-8").splitlines()
        words = (line.replace(" ", "").removesuffix("</w>") for line in merges if line.endswith("</w>"))
        self.words = [word for word in words if word.isalpha() and not word.startswith(KNOWN)]  # by their frequency
        self.pairs = pairs = ["".join(self.random.choices(HAN, k=2)) for _ in range(20_000)]
        self.weights = [1 / (n + 1) for n in range(len(self.words))]
        self.pair_weights = [1 / (n + 1) for n in range(len(pairs))]
        self._pool: list[str] = []

    def next(self, number: int) -> str:
        """The next prompt; words of its own at every hundred-thousandth and at every other."""
        if not self._pool:
            chosen = self.random.choices(self.words, self.weights, k=20 * 3000)
            han = self.random.choices(self.pairs, self.pair_weights, k=20 * 2000)
            self._pool = [" ".join(chosen[at : at + 20]) for at in range(0, len(chosen), 20)]
            self._pool += ["".join(han[at : at + 20]) for at in range(0, len(han), 20)]
            self.random.shuffle(self._pool)
        text = self._pool.pop()
        text += " spaceship" if number % 100_000 == 77 else ""
        text += " 龙猫飞船" if number % 100_000 == 78 else ""
        return text + (" painting, 汽车油画" if number % 2 else " photograph, 摄影照片")


def entries(prompts: Prompts, pictures: int, a_job: int, own: bool) -> Iterator[JobEntry]:
    """Jobs of `a_job` pictures, one every ten seconds; with `own` every picture has its own prompt."""
    jobs = pictures // a_job
    for job in range(jobs):
        drawn = NOW - timedelta(seconds=10 * (jobs - job))
        shots = tuple(
            PictureEntry(f"samples/{n:05}.png", f"outputs/txt2img-samples/samples/{job * a_job + n:05}.png",
                 prompts.next(job * a_job + n) if own else None, n)
            for n in range(a_job)
        )  # fmt: skip
        name = f"{drawn:%Y%m%dT%H%M%SZ}-{job:06}-job"
        yield JobEntry(
            id=name, state="done", place=f"jobs/done/{name}", stamp=0, drawn_at=drawn,
            prompt="" if own else prompts.next(job), kind="txt2img", shots=shots, size=(512, 512),
            ckpt=CKPTS[2 if job % 5000 == 9 else job % 2], seed=42 if job % 3 else job,
        )  # fmt: skip


def fill(root: Root, made: Iterator[JobEntry]) -> tuple[History, float]:
    """An index with these in it, and the seconds that took."""
    began = time.perf_counter()
    database = index.connect(root.state / DATABASE, 5)
    some: list[JobEntry] = []
    for entry in made:
        some.append(entry)
        if len(some) == 200:
            with index.writing(database):
                for each in some:
                    index.insert(database, each)
            some.clear()
    with index.writing(database):
        for each in some:
            index.insert(database, each)
    seconds = time.perf_counter() - began
    database.close()
    return History(root), seconds


def measure(history: History, prompts: Prompts) -> Iterator[tuple[str, int, float, float, float]]:
    """A name, how many were found on the page, and milliseconds: the first time, the median, the longest after it."""
    rare = prompts.words[15_000]
    searches: dict[str, Search] = {
        "nothing asked for": {},
        "a rare word, ten among all": {"words": "spaceship"},
        "a rare word by its beginning": {"words": "spaces"},
        "an uncommon word": {"words": rare},
        "a frequent word, in every other": {"words": "painting"},
        "three frequent words": {"words": f"{prompts.words[0]} {prompts.words[1]} painting"},
        "two frequent words, never together": {"words": "painting photograph"},
        "a long word, whose first ten letters are in every other": {"words": "photographer"},
        "a word that is nowhere": {"words": "zzyzx"},
        "one Chinese character, rare": {"words": "龙"},
        "two Chinese characters, frequent": {"words": "汽车"},
        "two Chinese characters, rare": {"words": "龙猫"},
        "three Chinese characters, rare": {"words": "猫飞船"},
        "four Chinese characters, frequent": {"words": "摄影照片"},
        "five Chinese characters, of which four are frequent": {"words": "摄影照片集"},
        "one letter": {"words": "p"},
        "a frequent word, a seed": {"words": "painting", "seed": 3003},
        "a frequent word, a rare model": {"words": "painting", "ckpt": "anime"},
        "a frequent word, the last day": {"words": "painting", "since": NOW - timedelta(days=1)},
        "a seed": {"seed": 30_000},
        "failed": {"failed": True},
    }
    for name, asked in searches.items():
        yield name, *timed(history, asked, None)
    together = "two frequent words, never together"
    history.patience = PATIENCE
    yield f"{together}: as the page asks, which then asks on", *timed(history, searches[together], None)
    history.patience = math.inf
    for name in ("nothing asked for", "a frequent word, in every other", "two Chinese characters, frequent"):
        before = None
        for _ in range(49):
            before = history.search(**searches[name], before=before, limit=PAGE)[-1].key  # type: ignore[arg-type]
        yield f"{name}: page 50", *timed(history, searches[name], before)


def timed(history: History, asked: Search, before: int | None) -> tuple[int, float, float, float]:
    """How many were found, and milliseconds."""
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        found = history.search(**asked, before=before, limit=PAGE)  # type: ignore[arg-type]
        times.append((time.perf_counter() - began) * 1000)
    return len(found), times[0], statistics.median(times), max(times[1:])


def lay_folders(root: Root, made: Iterator[JobEntry]) -> list[Path]:
    """Done folders with the manifests that the service writes, and a first picture's head."""
    folders = []
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\2\0\0\0\2\0\x08\2\0\0\0" + b"\0" * 4
    for entry in made:
        folder = root.done / entry.id
        (folder / "samples").mkdir(parents=True)
        (folder / entry.shots[0].file).write_bytes(head)
        job = {"prompt": entry.prompt, "ckpt": entry.ckpt, "seed": entry.seed, "H": 512, "W": 512, "n_iter": 2}
        pictures = [
            Picture(
                file=shot.file,
                sha256="0" * 64,
                seed=42,
                iteration=0,
                index=shot.number,
                prompt=shot.prompt,
                published=shot.published,
            )
            for shot in entry.shots
        ]
        manifest = Manifest(
            id=entry.id, source="job.yaml", part=None, source_sha256="0" * 64, parent=None, attempts=1, job=job,
            pictures=pictures, grid=None, inputs=[], outdir="outputs/txt2img-samples", device="cuda:0",
            timings={"finished": entry.drawn_at.isoformat()}, versions={}, checkpoint={}, notes=[],
        )  # fmt: skip
        (folder / "manifest.yaml").write_text(manifest.to_yaml())
        folders.append(folder)
    return folders


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--folders", type=int, default=5000, help="jobs of six pictures to read again")
    parser.add_argument("--place", type=Path, help="a folder on the disk to measure (default: the temporary folder)")
    options = parser.parse_args()
    report_same_names(options.place, (1000, 2000, 4000, 20_000))
    for own, a_job in ((False, 6), (True, 6)):
        place = Path(tempfile.mkdtemp(dir=options.place))
        try:
            report(make_root(place), options.pictures, options.folders, a_job, own)
        finally:
            shutil.rmtree(place)


def report_same_names(place: Path | None, counts: tuple[int, ...]) -> None:
    """Reading again jobs that all published under the same names, and adding one more."""
    print(
        "| jobs that published under the same names | read again in s | ms a job | adding one: ms |\n|---|---|---|---|"
    )
    for count in counts:
        folder = Path(tempfile.mkdtemp(dir=place))
        root = make_root(folder)
        made = entries(Prompts(), count * 6, 6, own=False)
        name = "outputs/txt2img-samples/samples/{:05}.png"
        same = (replace(e, shots=tuple(replace(s, published=name.format(s.number)) for s in e.shots)) for e in made)
        laid = lay_folders(root, same)
        history = History(root)
        began = time.perf_counter()
        history.refresh()
        seconds = time.perf_counter() - began
        times = []
        for each in laid[:100]:
            began = time.perf_counter()
            history.add(each)
            times.append((time.perf_counter() - began) * 1000)
        row = f"{count:,} | {seconds:.1f} | {seconds / count * 1000:.2f} | {statistics.median(times):.2f}"
        print(f"| {row} |", flush=True)
        history.close()
        shutil.rmtree(folder)


def report(root: Root, count: int, folders: int, a_job: int, own: bool) -> None:
    """One of the two histories."""
    prompts = Prompts()
    history, seconds = fill(root, entries(prompts, count, a_job, own))
    size = sum(path.stat().st_size for path in root.state.glob("history.db*"))
    print(f"\n{'every picture with a prompt of its own' if own else 'jobs of six pictures with one prompt'}: ", end="")
    print(f"{count:,} pictures, {size / 1e6:.0f} MB, filled at {count / seconds:,.0f} pictures a second\n", flush=True)
    print("| searched for | found | first ms | median ms | longest ms |\n|---|---|---|---|---|")
    for name, found, *times in measure(history, prompts):
        print(f"| {name} | {found} | " + " | ".join(f"{ms:.2f}" for ms in times) + " |", flush=True)
    laid = lay_folders(root, entries(prompts, folders * a_job, a_job, own))
    times = []
    for folder in laid[:1000]:
        began = time.perf_counter()
        history.add(folder)
        times.append((time.perf_counter() - began) * 1000 / a_job)
    times.sort()
    print(f"\nadding: median {statistics.median(times):.2f} ms a picture, mean {statistics.fmean(times):.2f}, ", end="")
    print(f"99th of a hundred {times[int(len(times) * 0.99)]:.2f}, longest {times[-1]:.2f}")
    report_refresh(root, history, count, a_job)
    shutil.rmtree(root.outputs)
    for folder in root.done.iterdir():
        if not (folder / "manifest.yaml").exists():
            folder.rmdir()
    began = time.perf_counter()
    rebuilt = history.rebuild()
    seconds = time.perf_counter() - began
    print(f"rebuilding from {rebuilt:,} folders: {rebuilt / seconds:,.0f} jobs a second, ", end="")
    print(f"{rebuilt * a_job / seconds:,.0f} pictures; ", end="")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


def report_refresh(root: Root, history: History, count: int, a_job: int) -> None:
    """Bringing it up to date, with every folder of jobs/done/ and every name in outputs/ there: all in one folder."""
    samples = root.outputs / "txt2img-samples" / "samples"
    samples.mkdir(parents=True)
    for number in range(count // a_job * a_job):
        (samples / f"{number:05}.png").touch()
    for (job_id,) in history.database._connection.execute("SELECT id FROM jobs"):  # noqa: SLF001 - all of them
        (root.done / job_id).mkdir(exist_ok=True)
    places = [root.done, root.failed, root.outputs, samples.parent, samples]
    for place in places:
        os.utime(place, (1e9, 1e9))
    history.refresh()
    for name, changed in (("nothing changed", []), ("a job more", [root.done, samples]), ("another", [root.done])):
        for place in changed:
            os.utime(place, (1e9, place.stat().st_mtime + 10))
        began = time.perf_counter()
        history.refresh()
        print(f"bringing it up to date, {name}: {(time.perf_counter() - began) * 1000:,.1f} ms", flush=True)


if __name__ == "__main__":
    main()
