"""Does the demo model draw what it is asked? Measured through the service's own drawing code.

    python tools/evaluate_demo_model.py                     # the figures of MODEL_CARD.md, 3 seeds
    python tools/evaluate_demo_model.py --write-references demo/training/npm

The yardstick is independent of the model: a picture shows the emoji that is nearest to it in pixels, put before the
asked colour as in training (or mirrored, or a pixel beside), of all that the model knows and of DECOYS more that it
never saw. They are thumbnails, 32x32 with alpha, in one committed sheet (Microsoft Fluent emoji, MIT).
"""

import argparse
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import demo_data as data
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from sdbatch.job.parameters import Img2Img, Txt2Img
from sdbatch.renderer.draw import draw
from sdbatch.renderer.models.models import Model, load_model

Floats = npt.NDArray[np.float32]

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "sdbatch/data/demo"
REFERENCES = ROOT / "tests/demo/things.webp"
DECOYS = 290
THUMB, COLUMNS = 32, 20
STEPS, SCALE = 30, 5.0
SIZE = round(THUMB * data.SCALE)
SHIFTS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))


class Yardstick:
    """The emoji, first the things that the model knows, then the decoys; and which of them a picture is nearest to."""

    def __init__(self, sheet: Path = REFERENCES) -> None:
        with Image.open(sheet) as image:
            pixels = image.convert("RGBA")
        count = len(data.NAMES) + DECOYS
        corners = [(i % COLUMNS * THUMB, i // COLUMNS * THUMB) for i in range(count)]
        self.emoji = [pixels.crop((x, y, x + THUMB, y + THUMB)) for x, y in corners]
        placed = [self._place(seen, *shift) for e in self.emoji for seen in (e, ImageOps.mirror(e)) for shift in SHIFTS]
        self._placed = np.stack(placed).astype(np.float32)  # [emoji * placements, 32, 32, 4]
        self._placed[..., 3] /= 255

    def ranking(self, picture: data.Rgb, colour: str) -> list[int]:
        """All emoji, the nearest first, for a picture [64, 64, 3] asked for before `colour`."""
        small = Image.fromarray(picture).resize((THUMB, THUMB), Image.Resampling.BOX)
        thing, alpha = self._placed[..., :3], self._placed[..., 3:]
        before = thing * alpha + np.asarray(data.COLOURS[colour], np.float32) * (1 - alpha)
        distances = np.square(before - np.asarray(small, np.float32)).sum((1, 2, 3))
        return [int(i) for i in np.argsort(distances.reshape(len(self.emoji), -1).min(1))]

    @staticmethod
    def _place(emoji: Image.Image, x: int, y: int) -> npt.NDArray[np.uint8]:
        canvas = Image.new("RGBA", (THUMB, THUMB))
        edge = (THUMB - SIZE) // 2
        canvas.paste(emoji.resize((SIZE, SIZE), Image.Resampling.BICUBIC), (edge + x, edge + y))
        return np.asarray(canvas)

    def picture(self, thing: int, colour: str) -> data.Rgb:
        """A thing before a colour, [64, 64, 3], from its thumbnail: an init image."""
        return data.compose(self.emoji[thing], data.COLOURS[colour])


def background(picture: data.Rgb) -> str:
    """The colour word nearest to a picture's edge: the median of its outermost three pixels all around."""
    inside = np.zeros(picture.shape[:2], bool)
    inside[3:-3, 3:-3] = True
    median = np.median(picture[~inside].astype(np.float64), axis=0)
    return min(data.COLOURS, key=lambda name: float(np.square(median - data.COLOURS[name]).sum()))


def prompt_for(thing: int, colour: str) -> str:
    """`a car on a yellow background`."""
    return f"{data.with_article(list(data.NAMES.values())[thing][0])} on a {colour} background"


def chinese_prompt_for(thing: int, colour: str) -> str:
    """`黄色背景上的汽车`."""
    return f"{data.CHINESE_COLOURS[colour]}背景上的{list(data.CHINESE_NAMES.values())[thing][0]}"


def txt2img(model: Model, prompts: Sequence[str], seed: int) -> data.Rgb:
    """A picture for each prompt, [prompts, 64, 64, 3], as one job draws them."""
    job = Txt2Img(
        prompt=prompts[0],
        H=data.SIDE,
        W=data.SIDE,
        ddim_steps=STEPS,
        scale=SCALE,
        n_iter=1,
        n_samples=len(prompts),
        seed=seed,
    )
    (drawn,) = draw(model, job, prompts, None, 0, _silent)
    return drawn.pixels


def img2img(model: Model, prompt: str, init: data.Rgb, strength: float, seed: int) -> data.Rgb:
    """One picture [64, 64, 3] from an init image."""
    job = Img2Img(
        prompt=prompt,
        init_img="init.png",
        strength=strength,
        ddim_steps=STEPS,
        scale=SCALE,
        n_iter=1,
        n_samples=1,
        seed=seed,
    )
    (drawn,) = draw(model, job, None, init.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1, 0, _silent)
    pixels: data.Rgb = drawn.pixels[0]
    return pixels


def _silent(*_: object) -> None:
    """No progress."""


def correlation(ours: data.Rgb, theirs: data.Rgb) -> float:
    """Of two pictures' pixels, all channels."""
    return float(np.corrcoef(ours.ravel(), theirs.ravel())[0, 1])


def obedience(
    model: Model, yardstick: Yardstick, seed: int, prompt: Callable[[int, str], str] = prompt_for
) -> tuple[list[int], list[str], data.Rgb]:
    """For the held-out combinations: the rank of the asked thing (0: first), the background seen, and the pictures."""
    asked = data.held_out()
    pictures = txt2img(model, [prompt(*pair) for pair in asked], seed)
    ranks = [yardstick.ranking(p, c).index(thing) for p, (thing, c) in zip(pictures, asked, strict=True)]
    return ranks, [background(p) for p in pictures], pictures


def changes() -> list[tuple[tuple[int, str], tuple[int, str]]]:
    """What img2img is tried on, (from, to): ten of the held-out combinations turned into ten others."""
    asked = data.held_out()
    return list(zip(asked[:10], asked[15:25], strict=True))


def transformed(
    model: Model, yardstick: Yardstick, strength: float, seed: int
) -> tuple[list[float], list[bool], list[data.Rgb]]:
    """For `changes()`: how the result correlates with its init image, whether it shows the asked thing, the results."""
    similar, right, pictures = [], [], []
    for old, (thing, colour) in changes():
        init = yardstick.picture(*old)
        picture = img2img(model, prompt_for(thing, colour), init, strength, seed)
        similar.append(correlation(picture, init))
        right.append(yardstick.ranking(picture, colour)[0] == thing and background(picture) == colour)
        pictures.append(picture)
    return similar, right, pictures


def sentences(model: Model, yardstick: Yardstick, sheets: Path | None) -> list[str]:
    """Two long prompts, as a person writes them: what is seen in the pictures of a txt2img and then an img2img job."""
    first = Txt2Img(
        prompt="A nice blue car is transforming into a truck.", H=data.SIDE, W=data.SIDE, n_iter=1, n_samples=6, seed=42
    )
    (drawn,) = draw(model, first, None, None, 0, _silent)
    second = Img2Img(
        prompt="Add the spider-man on the right. Keep the truck unchanged.",
        init_img="00002.png",
        n_iter=1,
        n_samples=6,
        seed=42,
    )
    init = drawn.pixels[2].transpose(2, 0, 1).astype(np.float32) / 127.5 - 1
    (changed,) = draw(model, second, None, init, 0, _silent)
    if sheets:
        save_rows(sheets / "sentences.png", [*drawn.pixels, *changed.pixels], 6)
    spoken = [*(names[0] for names in data.NAMES.values()), *["something else"] * DECOYS]
    return [
        f"{job.prompt} {', '.join(spoken[yardstick.ranking(p, background(p))[0]] for p in pictures)}"
        for job, pictures in ((first, drawn.pixels), (second, changed.pixels))
    ]


def write_references(packages: Path) -> None:
    """The committed sheet of thumbnails, from the npm packages: the things, then decoys drawn by lot."""
    files = data.emoji_files(packages)
    decoys = random.Random(1).sample([label for label in files if label not in data.NAMES], DECOYS)
    sheet = Image.new("RGBA", (COLUMNS * THUMB, -(-(len(data.NAMES) + DECOYS) // COLUMNS) * THUMB))
    for i, label in enumerate([*data.NAMES, *decoys]):
        with Image.open(files[label]) as image:
            small = image.convert("RGBA").resize((THUMB, THUMB), Image.Resampling.LANCZOS)
        sheet.paste(small, (i % COLUMNS * THUMB, i // COLUMNS * THUMB))
    REFERENCES.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(REFERENCES, quality=90, method=6)


def save_rows(path: Path, pictures: Sequence[data.Rgb], columns: int) -> None:
    """Pictures as one PNG; their number is a multiple of `columns`."""
    rows = [np.concatenate(pictures[i : i + columns], axis=1) for i in range(0, len(pictures), columns)]
    Image.fromarray(np.concatenate(rows)).save(path)


def report_obedience(
    model: Model,
    yardstick: Yardstick,
    seeds: Sequence[int],
    say: Callable[[str], None],
    sheets: Path | None,
    language: str,
    prompt: Callable[[int, str], str],
) -> None:
    """Print how the held-out prompts in a language were obeyed."""
    asked, names = data.held_out(), list(data.NAMES)
    ranks, hits = [], 0
    for seed in seeds:
        some, colours, pictures = obedience(model, yardstick, seed, prompt)
        right = sum(seen == colour for seen, (_, colour) in zip(colours, asked, strict=True))
        wrong = [names[thing] for rank, (thing, _) in zip(some, asked, strict=True) if rank]
        say(f"{language}, seed {seed}: thing first {some.count(0)}/40, background {right}/40")
        say(f"  not first: {', '.join(wrong) or '-'}")
        ranks += some
        hits += right
        if sheets:
            save_rows(sheets / f"held-out-{language}-{seed}.png", list(pictures), 10)
    first, nearly = ranks.count(0) / len(ranks), sum(rank < 3 for rank in ranks) / len(ranks)
    say(f"{language}, {len(ranks)} pictures: thing first {first:.1%}, among the nearest three {nearly:.1%}")
    say(f"  background as asked {hits / len(ranks):.1%}")


def report(model: Model, seeds: Sequence[int], say: Callable[[str], None], sheets: Path | None) -> None:
    """Print every figure; with `sheets`, a folder, write what was measured as pictures too."""
    yardstick = Yardstick()
    say(f"{len(yardstick.emoji)} emoji to choose from")
    for language, prompt in (("English", prompt_for), ("Chinese", chinese_prompt_for)):
        report_obedience(model, yardstick, seeds, say, sheets, language, prompt)
    for strength in (0.4, 0.75, 0.9):
        results = [transformed(model, yardstick, strength, seed) for seed in seeds]
        similar = [s for result in results for s in result[0]]
        obeyed = [r for result in results for r in result[1]]
        middle = np.median(similar)
        say(f"img2img strength {strength}: correlation with the init image {middle:.2f}, least {min(similar):.2f}")
        say(f"  thing and background as asked {np.mean(obeyed):.1%} of {len(obeyed)}")
        if sheets:
            inits = [yardstick.picture(*old) for old, _ in changes()]
            save_rows(sheets / f"img2img-{strength}.png", inits + results[0][2], 10)
    for line in sentences(model, yardstick, sheets):
        say(line)


def main() -> None:
    """Measure, or write the reference sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of model.safetensors and v1-inference.yaml")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sheets", type=Path, help="a folder for the pictures")
    parser.add_argument("--write-references", type=Path, metavar="PACKAGES", help="npm packages, from training")
    asked = parser.parse_args()
    if asked.write_references:
        write_references(asked.write_references)
        return
    if asked.sheets:
        asked.sheets.mkdir(parents=True, exist_ok=True)
    model = load_model(asked.model / "model.safetensors", asked.model / "v1-inference.yaml")
    report(model, range(42, 42 + asked.seeds), print, asked.sheets)


if __name__ == "__main__":
    main()
