"""How quick the page is with a hundred thousand pictures in its history, as a browser sees it.

    python benchmarks/web.py [--pictures 2000 100000] [--repeats 15] [--place DIR]

Done folders of six 512x512 pictures each (hard links of twenty different ones), a prompt a job, two in five Chinese;
the page as `sdbatch web` serves it, headless Chromium at 1200x850. First paint is the browser's own
first-contentful-paint; a search is from the last letter typed to the results' being there, the 150 ms in which the page
waits for another letter among it. A small root in the same run is what to compare with. Wants Chromium.
"""

import argparse
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
from harness import make_root
from history import Prompts, entries, lay_folders
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from sdbatch.storage.root import Root
from sdbatch.web.site import STILL_READING

A_JOB = 6
WORDS = {
    "a frequent word": "painting",
    "two characters, frequent": "汽车",
    "a rare word": "spaceship",
    "a word that is nowhere": "zzyzx",
}
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
# Those that are seen; the others load when they are scrolled to.
SHOWN = """[...document.images].filter(i => i.getBoundingClientRect().top < innerHeight)
    .filter(i => i.getBoundingClientRect().bottom > 0).every(i => i.complete && i.naturalWidth)"""


def fill(root: Root, pictures: int) -> None:
    """Done folders with real pictures in them."""
    rng, base = np.random.default_rng(1), []
    for number in range(20):
        rough = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).resize((512, 512))
        noise = rng.integers(0, 12, (512, 512, 3), np.uint8)
        base.append(root.state / f"base-{number}.png")
        Image.fromarray(np.asarray(rough) // 2 + noise).save(base[-1], compress_level=1)
    chosen = random.Random(1)
    for folder in lay_folders(root, entries(Prompts(), pictures, A_JOB, own=False)):
        (folder / "samples" / "00000.png").unlink()
        for number in range(A_JOB):
            (folder / "samples" / f"{number:05}.png").hardlink_to(chosen.choice(base))


def measure(page: Page, repeats: int) -> Iterator[tuple[str, list[float]]]:
    """What was done, and milliseconds of each time."""
    first: list[float] = []
    shown: list[float] = []
    for view in ("/history", "/"):
        paints: list[float] = []
        pictures: list[float] = []
        for number in range(repeats):
            began = time.perf_counter()
            page.goto(view)
            until(page, f"{SHOWN} && {PAINTED} !== undefined")
            (first if number == 0 and view == "/history" else paints).append(page.evaluate(PAINTED))
            (shown if number == 0 and view == "/history" else pictures).append((time.perf_counter() - began) * 1000)
        if view == "/history":
            yield "history: first paint, the first time", first
            yield "history: all thumbnails in sight, the first time (they are drawn then)", shown
        name = "history" if view == "/history" else "queue"
        yield f"{name}: first paint", paints
        yield f"{name}: all thumbnails in sight", pictures
    page.goto("/history")
    for name, words in WORDS.items():
        yield f"search: {name}", [timed(lambda w=words: search(page, w)) for _ in range(repeats)]  # type: ignore[misc]
    page.goto("/history")
    yield "on by a screen: its thumbnails in sight (drawn then)", [timed(lambda: scroll(page)) for _ in range(repeats)]


def timed(act: Callable[[], object]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1000


def search(page: Page, words: str) -> None:
    """Type the last letter, and wait for the answer."""
    page.evaluate("document.getElementById('words').value = ''")
    with page.expect_response(lambda answer: "/history?" in answer.url):
        page.locator("#words").fill(words)
    until(page, "!document.querySelector('.htmx-request, .htmx-swapping, .htmx-settling')")


def until(page: Page, condition: str) -> None:
    """Playwright's own waiting is a string that the page's policy does not let run."""
    while not page.evaluate(condition):
        time.sleep(0.002)


def scroll(page: Page) -> None:
    """On by a screen, until what is in sight is there."""
    page.evaluate("scrollBy(0, innerHeight)")
    until(page, SHOWN)


def report(count: int, repeats: int, place: Path) -> dict[str, float]:
    """The medians of a root with so many pictures."""
    root = make_root(place)
    fill(root, count)
    command = [sys.executable, "-m", "sdbatch", "web", "--root", str(root.path), "--bind", "127.0.0.1:0"]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as served, sync_playwright() as playwright:
        try:
            assert served.stdout is not None
            found = re.search(r"http://\S+(?=/\n)", served.stdout.readline())
            assert found
            seconds = time.perf_counter() - began
            while STILL_READING in urlopen(f"{found[0]}/history").read().decode():
                time.sleep(0.1)
            read_seconds = time.perf_counter() - began
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
            page = browser.new_page(base_url=found[0], viewport={"width": 1200, "height": 850})
            medians = {"start of the page with no index yet, seconds": seconds}
            medians |= {"until all folders were read, seconds": read_seconds}
            medians |= {name: statistics.median(times) for name, times in measure(page, repeats)}
            browser.close()
        finally:
            served.terminate()
    return medians


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, nargs="+", default=[2000, 100_000])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--place", type=Path, help="a folder on the disk to measure (default: the temporary folder)")
    options = parser.parse_args()
    columns = []
    for count in options.pictures:
        place = Path(tempfile.mkdtemp(dir=options.place))
        try:
            columns.append(report(count, options.repeats, place))
        finally:
            shutil.rmtree(place)
    print("| median ms | " + " | ".join(f"{count:,} pictures" for count in options.pictures) + " |")
    print("|---|" + "---|" * len(columns))
    for name in columns[0]:
        print(
            f"| {name} | "
            + " | ".join(f"{column[name]:.{1 if 'seconds' in name else 0}f}" for column in columns)
            + " |"
        )


if __name__ == "__main__":
    main()
