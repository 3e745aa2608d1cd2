"""Draws the contact sheets of docs/samplers.md: the demo's model, every sampler with every schedule.

    python tools/draw_samplers_sheet.py                   # docs/samplers-10.png and docs/samplers-30.png
    python tools/draw_samplers_sheet.py --steps 4 --to .  # another number of steps, elsewhere

The jobs go through the folders of a demo root, as anybody's would.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml
from PIL import Image, ImageDraw

from sdbatch.job.samplers import SAMPLERS, SCHEDULES

JOB = {"prompt": "a red apple on a blue background", "seed": 42, "seeding": "picture", "n_iter": 1, "n_samples": 1}
SIDE, LABEL, MARGIN = 64, 14, 84  # pixels


def cells() -> Iterator[tuple[str, str]]:
    """Every sampler with every schedule that it may have."""
    for sampler, told in SAMPLERS.items():
        for schedule in SCHEDULES if told.automatic else ("automatic",):
            yield sampler, schedule


def draw(root: Path, steps: int) -> None:
    """One file of many jobs, each with an output folder of its own."""
    jobs = [
        {**JOB, "sampler": sampler, "schedule": schedule, "ddim_steps": steps, "skip_grid": True}
        | {"outdir": f"outputs/{steps}/{sampler}/{schedule}"}
        for sampler, schedule in cells()
    ]
    (root / "jobs/inbox" / f"{steps}-steps.yaml").write_text(yaml.safe_dump_all(jobs))
    subprocess.run([sys.executable, "-m", "sdbatch", "serve", "--root", root, "--drain"], check=True)


def sheet(root: Path, steps: int) -> Image.Image:
    """A row a sampler, a column a schedule."""
    columns = [*SCHEDULES]
    page = Image.new("RGB", (MARGIN + len(columns) * (SIDE + 2), LABEL + len(SAMPLERS) * (SIDE + 2)), "white")
    pen = ImageDraw.Draw(page)
    for column, schedule in enumerate(columns):
        pen.text((MARGIN + column * (SIDE + 2), 1), SCHEDULES[schedule][:11], "black")
    for row, (sampler, told) in enumerate(SAMPLERS.items()):
        top = LABEL + row * (SIDE + 2)
        pen.text((2, top + SIDE // 2 - 6), told.title, "black")
        for column, schedule in enumerate(columns):
            if (path := root / f"outputs/{steps}/{sampler}/{schedule}/samples/00000.png").exists():
                with Image.open(path) as picture:
                    page.paste(picture, (MARGIN + column * (SIDE + 2), top))
    return page


def main() -> None:
    """Draw and lay the sheets."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--steps", type=int, nargs="*", default=[10, 30])
    asked.add_argument("--to", type=Path, default=Path(__file__).parents[1] / "docs")
    given = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "demo"
        subprocess.run([sys.executable, "-m", "sdbatch", "init", root, "--demo"], check=True)
        for steps in given.steps:
            draw(root, steps)
            sheet(root, steps).save(given.to / f"samplers-{steps}.png", optimize=True)


if __name__ == "__main__":
    main()
