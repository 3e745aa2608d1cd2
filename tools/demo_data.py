"""The demo model's pictures and captions: emoji on plain backgrounds, and sentences that say what stands where.

Pictures: Microsoft's Fluent emoji (npm `@lobehub/fluent-emoji-3d`, MIT), 256x256 WebP with alpha. Words: emojibase
(npm `emojibase-data`, MIT). Both are fetched with npm and stay out of the repository; so do flags, symbols and people.
"""

import json
import random
import subprocess
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Rgba = npt.NDArray[np.uint8]  # [H, W, 4]
Rgb = npt.NDArray[np.uint8]  # [H, W, 3]

PACKAGES = ("@lobehub/fluent-emoji-3d@1.1.0", "emojibase-data@17.0.0")
SIDE = 64  # pixels; the autoencoder makes 8x8 latents of them
# How large a thing stands in its picture, as a share of the side, and how far from the centre, in shares too.
SCALES = (0.80, 0.90)
MOST_SHIFT = 0.05

# Far enough apart in RGB that the nearest one names a painted background.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 40), "orange": (250, 140, 30), "yellow": (250, 220, 60), "green": (50, 165, 70),
    "blue": (45, 95, 220), "purple": (130, 60, 185), "pink": (250, 165, 205), "white": (255, 255, 255),
    "grey": (128, 128, 128), "black": (15, 15, 15),
}  # fmt: skip
CHINESE_COLOURS = {
    "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色", "blue": "蓝色",
    "purple": "紫色", "pink": "粉色", "white": "白色", "grey": "灰色", "black": "黑色",
}  # fmt: skip

# What the model can draw: emojibase's label, then what we call it, from its tags and from what people say.
_THINGS = """
monkey face: monkey
dog face: dog, puppy
fox: fox
cat face: cat, kitten
lion: lion
cow face: cow
pig face: pig
giraffe: giraffe
elephant: elephant
zebra: zebra
rabbit face: rabbit, bunny
panda: panda
koala: koala
bat: bat
chicken: chicken, hen
penguin: penguin
owl: owl
flamingo: flamingo
parrot: parrot
duck: duck
frog: frog
turtle: turtle, tortoise
snake: snake
T-Rex: dinosaur, t-rex
spouting whale: whale
tropical fish: fish
shark: shark
octopus: octopus
crab: crab
snail: snail
butterfly: butterfly
ant: ant
honeybee: bee, honey bee, bumblebee
lady beetle: ladybug, ladybird
spider: spider, spider-man, spiderman
scorpion: scorpion
rose: rose
sunflower: sunflower
tulip: tulip
cactus: cactus
palm tree: palm tree, palm
evergreen tree: fir tree, tree, pine tree
mushroom: mushroom, toadstool
maple leaf: maple leaf
four leaf clover: clover, lucky clover
grapes: grapes
watermelon: watermelon
lemon: lemon
banana: banana
pineapple: pineapple
red apple: apple, red apple
green apple: green apple
cherries: cherries, cherry
strawberry: strawberry
avocado: avocado
eggplant: eggplant, aubergine
carrot: carrot
broccoli: broccoli
hamburger: hamburger, burger
pizza: pizza
hot dog: hot dog, hotdog
doughnut: doughnut, donut
cupcake: cupcake
soft ice cream: ice cream
lollipop: lollipop
cheese wedge: cheese
french fries: french fries, fries
beer mug: beer, mug of beer
automobile: car, red car, automobile
sport utility vehicle: blue car, suv
delivery truck: truck, delivery truck, lorry
bus: bus
taxi: taxi, yellow cab
ambulance: ambulance
fire engine: fire engine, fire truck
tractor: tractor
bicycle: bicycle, bike
motorcycle: motorcycle, motorbike
airplane: airplane, plane, aeroplane
helicopter: helicopter
rocket: rocket, spaceship
sailboat: sailboat, boat
locomotive: train, locomotive, steam train
flying saucer: ufo, flying saucer
house: house, home
castle: castle
crown: crown
guitar: guitar
bell: bell
balloon: balloon
umbrella: umbrella
soccer ball: football, soccer ball
basketball: basketball
star: star
crescent moon: moon, crescent moon
rainbow: rainbow
snowman: snowman
fire: fire, flame
gem stone: diamond, gem, jewel
t-shirt: t-shirt, shirt
laptop: laptop, computer
light bulb: light bulb, lamp
camera: camera
trophy: trophy, cup
wrapped gift: gift, present
closed book: book
candle: candle
anchor: anchor
alarm clock: clock, alarm clock
teddy bear: teddy bear, bear
"""
# By label, in the order in which the things are numbered everywhere.
NAMES = {
    label: tuple(spoken.split(", "))
    for label, _, spoken in (line.partition(": ") for line in _THINGS.strip().splitlines())
}
# Chinese names where emojibase's own is not what people write.
_CHINESE = {"automobile": "汽车", "sport utility vehicle": "蓝色的汽车", "delivery truck": "卡车", "closed book": "书"}

# Sentences with a background {c}, without one, and with another thing {b} beside the one drawn. {a} comes with its
# article where `{a}` stands, bare where `{n}` does.
WITH_COLOUR = (
    "{a} on a {c} background", "{n} on a {c} background", "{n}, {c} background", "a {c} background with {a}",
    "{a} in front of a {c} background", "a picture of {a} on a {c} background", "{c} background, {n}", "{n} on {c}",
)  # fmt: skip
WITHOUT_COLOUR = (
    "{n}", "{a}", "the {n}", "a photo of {a}", "a picture of {a}", "a nice {n}", "draw {a}", "one {n}",
    "a painting of {a}", "a nice little {n}",
)  # fmt: skip
WITH_ANOTHER = (
    "a nice {n} is transforming into {b}", "{b} is transforming into {a}",
    "add the {n} on the right. keep {b} unchanged.", "add {a} on the left. keep {b} unchanged.",
)  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """Something the model can draw: its emojibase label, its names (the first is the usual one), its code points."""

    label: str
    names: tuple[str, ...]
    chinese: str
    file: Path

    @cached_property
    def picture(self) -> Image.Image:
        """256x256 RGBA."""
        with Image.open(self.file) as image:
            return image.convert("RGBA")


def fetch(folder: Path) -> None:
    """Fetch both packages into `folder` with `npm pack`, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        at = folder / package.strip("@").replace("/", "-").replace("@", "-")
        if at.exists():
            continue
        subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(at.with_name(at.name + ".tgz")) as archive:
            archive.extractall(at, filter="data")


def load_things(folder: Path) -> list[Thing]:
    """The things, in their written order, from the packages in `folder`."""
    emoji, words = (folder / p.strip("@").replace("/", "-").replace("@", "-") / "package" for p in PACKAGES)
    codes = {entry["label"]: entry["hexcode"] for entry in json.loads((words / "en/data.json").read_text())}
    chinese = {entry["hexcode"]: entry["label"] for entry in json.loads((words / "zh/data.json").read_text())}
    things = []
    for label, spoken in NAMES.items():
        code = codes[label]
        files = [emoji / "assets" / f"{code.lower()}{suffix}.webp" for suffix in ("", "-fe0f")]
        file = next(path for path in files if path.exists())
        things.append(Thing(label, spoken, _CHINESE.get(label, chinese[code]), file))
    return things


def held_out() -> list[tuple[int, str]]:
    """The combinations (thing, colour) that no latents in training show: 40, no thing twice, each colour 4 times."""
    things = random.Random(40).sample(range(len(NAMES)), 40)
    return [(thing, list(COLOURS)[i % len(COLOURS)]) for i, thing in enumerate(things)]


def compose(
    picture: Image.Image,
    background: tuple[int, int, int],
    *,
    side: int = SIDE,
    scale: float = 0.85,
    shift: tuple[float, float] = (0, 0),
) -> Rgb:
    """A thing on a plain background, [side, side, 3]; `scale` and `shift` (x, y) in shares of the side."""
    canvas = Image.new("RGB", (side, side), background)
    size = round(side * scale)
    small = picture.resize((size, size), Image.Resampling.LANCZOS)
    corner = [round((side - size) / 2 + side * s) for s in shift]
    canvas.paste(small, (corner[0], corner[1]), small)
    return np.asarray(canvas)


def with_article(name: str) -> str:
    """`a car`, `an apple`, and none before what is many."""
    if name in {"grapes", "cherries", "french fries", "fries", "cheese", "beer", "broccoli", "fire"}:
        return name
    return f"{'an' if name[0] in 'aeio' or name == 'umbrella' else 'a'} {name}"


def caption(thing: Thing, other: Thing, colour: str, dice: random.Random) -> str:
    """A sentence for a thing before a colour; the background is not always told, and sometimes another thing is."""
    name = thing.names[0] if dice.random() < 0.6 else dice.choice((*thing.names, thing.label))
    lot = dice.random()
    if lot < 0.08:
        where = dice.choice(("{c}背景上的{n}", "{n},{c}背景", "{n}"))
        return where.format(n=thing.chinese, c=CHINESE_COLOURS[colour])
    patterns = WITH_COLOUR if lot < 0.62 else WITHOUT_COLOUR if lot < 0.92 else WITH_ANOTHER
    beside = with_article(other.names[0]) if dice.random() < 0.5 else f"the {other.names[0]}"
    return dice.choice(patterns).format(n=name, a=with_article(name), c=colour, b=beside)
