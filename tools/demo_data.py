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
from PIL import Image, ImageOps

Rgba = npt.NDArray[np.uint8]  # [H, W, 4]
Rgb = npt.NDArray[np.uint8]  # [H, W, 3]

PACKAGES = ("@lobehub/fluent-emoji-3d@1.1.0", "emojibase-data@17.0.0")
GROUPS = (3, 4, 5, 6, 7)  # emojibase's numbers for animals, food, places, activities and objects
SIDE = 64  # pixels; the autoencoder makes 8x8 latents of them
SCALE = 60 / 64  # how large a thing stands in its picture, as a share of the side
# From which mean difference of its pixels to their mirror image, before grey, a thing is said to look to one side.
ONE_SIDED = 12

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

# What the model can draw: emojibase's label, then names, English and Chinese, from emojibase and from what people say.
_THINGS = """
monkey face: monkey; 猴子, 猴头
dog face: dog, puppy; 狗, 小狗
fox: fox; 狐狸
cat face: cat, kitten; 猫, 小猫
lion: lion; 狮子
cow face: cow; 奶牛
pig face: pig; 猪, 小猪
giraffe: giraffe; 长颈鹿
elephant: elephant; 大象
zebra: zebra; 斑马
rabbit face: rabbit, bunny; 兔子
panda: panda; 熊猫
koala: koala; 考拉
bat: bat; 蝙蝠
chicken: chicken, hen; 鸡
penguin: penguin; 企鹅
owl: owl; 猫头鹰
flamingo: flamingo; 火烈鸟
parrot: parrot; 鹦鹉
duck: duck; 鸭子
frog: frog; 青蛙
turtle: turtle, tortoise; 乌龟
snake: snake; 蛇
T-Rex: dinosaur, t-rex; 恐龙, 霸王龙
spouting whale: whale; 鲸鱼
tropical fish: fish; 鱼, 热带鱼
shark: shark; 鲨鱼
octopus: octopus; 章鱼
crab: crab; 螃蟹
snail: snail; 蜗牛
butterfly: butterfly; 蝴蝶
ant: ant; 蚂蚁
honeybee: bee, honey bee, bumblebee; 蜜蜂
lady beetle: ladybug, ladybird; 瓢虫
spider: spider, spider-man, spiderman; 蜘蛛, 蜘蛛侠
scorpion: scorpion; 蝎子
rose: rose; 玫瑰
sunflower: sunflower; 向日葵
tulip: tulip; 郁金香
cactus: cactus; 仙人掌
palm tree: palm tree, palm; 棕榈树
evergreen tree: fir tree, tree, pine tree; 松树, 树
mushroom: mushroom, toadstool; 蘑菇
maple leaf: maple leaf; 枫叶
four leaf clover: clover, lucky clover; 四叶草
grapes: grapes; 葡萄
watermelon: watermelon; 西瓜
lemon: lemon; 柠檬
banana: banana; 香蕉
pineapple: pineapple; 菠萝
red apple: apple, red apple; 苹果, 红苹果
green apple: green apple; 青苹果
cherries: cherries, cherry; 樱桃
strawberry: strawberry; 草莓
avocado: avocado; 鳄梨
eggplant: eggplant, aubergine; 茄子
carrot: carrot; 胡萝卜
broccoli: broccoli; 西兰花
hamburger: hamburger, burger; 汉堡, 汉堡包
pizza: pizza; 披萨
hot dog: hot dog, hotdog; 热狗
doughnut: doughnut, donut; 甜甜圈
cupcake: cupcake; 纸杯蛋糕
soft ice cream: ice cream; 冰淇淋
lollipop: lollipop; 棒棒糖
cheese wedge: cheese; 奶酪
french fries: french fries, fries; 薯条
beer mug: beer, mug of beer; 啤酒
automobile: car, red car, automobile; 汽车
sport utility vehicle: blue car, suv; 蓝色的汽车
delivery truck: truck, delivery truck, lorry; 卡车, 货车
bus: bus; 公交车
taxi: taxi, yellow cab; 出租车
ambulance: ambulance; 救护车
fire engine: fire engine, fire truck; 消防车
tractor: tractor; 拖拉机
bicycle: bicycle, bike; 自行车
motorcycle: motorcycle, motorbike; 摩托车
airplane: airplane, plane, aeroplane; 飞机
helicopter: helicopter; 直升机
rocket: rocket, spaceship; 火箭
sailboat: sailboat, boat; 帆船
locomotive: train, locomotive, steam train; 火车, 蒸汽火车
flying saucer: ufo, flying saucer; 飞碟
house: house, home; 房子
castle: castle; 城堡
crown: crown; 皇冠
guitar: guitar; 吉他
bell: bell; 铃铛
balloon: balloon; 气球
umbrella: umbrella; 雨伞
soccer ball: football, soccer ball; 足球
basketball: basketball; 篮球
star: star; 星星
crescent moon: moon, crescent moon; 月亮
rainbow: rainbow; 彩虹
snowman: snowman; 雪人
fire: fire, flame; 火焰
gem stone: diamond, gem, jewel; 钻石, 宝石
t-shirt: t-shirt, shirt; T恤
laptop: laptop, computer; 笔记本电脑, 电脑
light bulb: light bulb, lamp; 灯泡
camera: camera; 相机
trophy: trophy, cup; 奖杯
wrapped gift: gift, present; 礼物
closed book: book; 书
candle: candle; 蜡烛
anchor: anchor; 锚
alarm clock: clock, alarm clock; 闹钟
teddy bear: teddy bear, bear; 泰迪熊, 熊
"""
# By label, in the order in which the things are numbered everywhere: English names and Chinese ones.
_LINES = (line.replace(": ", "; ", 1).split("; ") for line in _THINGS.strip().splitlines())
_SPOKEN = {label: (tuple(english.split(", ")), tuple(chinese.split(", "))) for label, english, chinese in _LINES}
NAMES = {label: english for label, (english, _) in _SPOKEN.items()}
CHINESE_NAMES = {label: chinese for label, (_, chinese) in _SPOKEN.items()}

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
    "add the {n} on the right. keep {b} unchanged", "add {a} on the left. keep {b} unchanged",
)  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """Something the model can draw: its emojibase label, its names (the first is the usual one), its file."""

    label: str
    names: tuple[str, ...]
    chinese: tuple[str, ...]
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
    files = emoji_files(folder)
    return [Thing(label, names, CHINESE_NAMES[label], files[label]) for label, names in NAMES.items()]


def emoji_files(folder: Path) -> dict[str, Path]:
    """Emoji of animals, food, places, activities and objects, by their labels: their pictures' files."""
    emoji, words = (folder / p.strip("@").replace("/", "-").replace("@", "-") / "package" for p in PACKAGES)
    found = {}
    for entry in json.loads((words / "en/data.json").read_text()):
        files = [emoji / "assets" / f"{entry['hexcode'].lower()}{suffix}.webp" for suffix in ("", "-fe0f")]
        file = next((path for path in files if path.exists()), None)
        if file and entry.get("group") in GROUPS:
            found[entry["label"]] = file
    return found


def held_out() -> list[tuple[int, str]]:
    """The combinations (thing, colour) that no latents in training show: 40, no thing twice, each colour 4 times."""
    things = random.Random(40).sample(range(len(NAMES)), 40)
    return [(thing, list(COLOURS)[i % len(COLOURS)]) for i, thing in enumerate(things)]


def compose(picture: Image.Image, background: tuple[int, int, int], *, side: int = SIDE) -> Rgb:
    """A thing on a plain background, [side, side, 3]."""
    canvas = Image.new("RGB", (side, side), background)
    size = round(side * SCALE)
    small = picture.resize((size, size), Image.Resampling.LANCZOS)
    canvas.paste(small, ((side - size) // 2, (side - size) // 2), small)
    return np.asarray(canvas)


def poses(picture: Image.Image) -> list[Image.Image]:
    """A thing's picture, and its mirror image where that is clearly another one: of a car, but not of a castle."""
    grey = compose(picture, (128, 128, 128)).astype(int)
    return [picture, ImageOps.mirror(picture)] if np.abs(grey - grey[:, ::-1]).mean() > ONE_SIDED else [picture]


def with_article(name: str) -> str:
    """`a car`, `an apple`, and none before what is many."""
    if name in {"grapes", "cherries", "french fries", "fries", "cheese", "beer", "broccoli", "fire"}:
        return name
    return f"{'an' if name[0] in 'aeio' or name in {'umbrella', 'suv'} else 'a'} {name}"


def caption(thing: Thing, other: Thing, colour: str, dice: random.Random) -> str:
    """A sentence for a thing before a colour; the background is not always told, and sometimes another thing is."""
    name = thing.names[0] if dice.random() < 0.6 else dice.choice((*thing.names, thing.label))
    lot = dice.random()
    if lot < 0.15:
        where = dice.choice(("{c}背景上的{n}", "{n},{c}背景", "{n}"))
        return where.format(n=dice.choice(thing.chinese), c=CHINESE_COLOURS[colour])
    patterns = WITH_COLOUR if lot < 0.58 else WITHOUT_COLOUR if lot < 0.85 else WITH_ANOTHER
    if any(colour in name.split() for name in thing.names):
        patterns = WITH_COLOUR  # "a blue car" says nothing of its background, so blue ones say more
    beside = with_article(other.names[0]) if dice.random() < 0.5 else f"the {other.names[0]}"
    sentence = dice.choice(patterns).format(n=name, a=with_article(name), c=colour, b=beside)
    return sentence + dice.choice(("", "."))
