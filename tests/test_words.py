"""Words that vary in a prompt: how they are read, counted, numbered and drawn."""

from collections import Counter
from pathlib import Path

import pytest
from harness import make_root

from sdbatch.errors import JobError
from sdbatch.prompts.wildcards import Wildcards
from sdbatch.prompts.words import ENDLESS, Dice, Node, Option, Text, drawn, nth, parse
from sdbatch.storage.root import Root


class Animals:
    """Three of them, whatever the file."""

    def options(self, name: str, within: tuple[str, ...]) -> tuple[Option, ...]:  # noqa: ARG002
        return tuple(Option(Text(word)) for word in ("cat", "dog", "fox"))


def ways(text: str) -> list[str]:
    node = parse(text, Animals())
    return [nth(node, number) for number in range(node.count)]


@pytest.mark.parametrize(
    ("text", "ways_to_read_it"),
    [
        ("a truck", ["a truck"]),
        ("a { red |blue} car", ["a red car", "a blue car"]),
        ("{a|b} {c|d}", ["a c", "a d", "b c", "b d"]),
        ("{red|2::blue|0::black}", ["red", "blue"]),
        ("{red|blue|2$$a,b,c}", ["red", "blue", "a, b", "a, c", "b, c"]),
        ("{2$$a|b|c}", ["a, b", "a, c", "b, c"]),
        ("{2$$a,b,c}", ["a, b", "a, c", "b, c"]),
        ("{1-2$$ and $$a|b}", ["a", "b", "a and b"]),
        ("{0-1$$a|b}", ["", "a", "b"]),
        ("{2-$$a|b|c}", ["a, b", "a, c", "b, c", "a, b, c"]),
        ("{-2$$a|b}", ["a", "b", "a, b"]),
        ("{2$$a|{x|y}|c}", ["a, x", "a, y", "a, c", "x, c", "y, c"]),
        ("{a|{b|{c|d}}}", ["a", "b", "c", "d"]),
        ("{a|}", ["a", ""]),
        ("{}", [""]),
        ("big __animals__", ["big cat", "big dog", "big fox"]),
        ("{2$$ & $$__animals__}", ["cat & dog", "cat & fox", "dog & fox"]),
        ("{[a|b]|c}", ["[a|b]", "c"]),
        ("[a|{b|c}]", ["[a|b]", "[a|c]"]),
        ("{x:y:0.5|(z:1.2)}", ["x:y:0.5", "(z:1.2)"]),
        (r"\{a\|b\} \_\_animals__ \$$", ["{a|b} __animals__ $$"]),
        ("5$ for 100% C# #1, snake__case__x, a | b", ["5$ for 100% C# #1, snake__case__x, a | b"]),
        (r"a \(film\) \\", [r"a \(film\) \\"]),
    ],
)
def test_what_varies_in_a_prompt(text: str, ways_to_read_it: list[str]) -> None:
    assert ways(text) == ways_to_read_it


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a {red|blue", r"{ at character 3 is not closed; for the sign itself write \{"),
        ("red}", r"} at character 4 closes nothing; for the sign itself write \}"),
        ("{3$$a|b}", "3$$ asks for more than there are: 2"),
        ("{$$a|b}", "$$: before $$ stands how many, as in 2$$ or 1-2$$"),
        ("{a $$ b|c}", "{a $$: before $$ stands how many, as in 2$$ or 1-2$$"),
        ("{0::a}", "all words of a group have the weight 0"),
        ("${colour=red} ${colour}", "${colour=: there are no variables here"),
        ("{~a|b}", "{~a|b}: there is no ~ here; for the sign itself write a space before it"),
        ("{" * 21 + "a" + "}" * 21, "{ stands in more than 20 others"),
    ],
)
def test_what_can_not_be_read_is_told(text: str, told: str) -> None:
    with pytest.raises(JobError) as error:
        parse(text, Animals())
    assert str(error.value) == told


def test_counts_of_any_size_are_known_at_once_and_any_way_is_found_by_its_number() -> None:
    node = parse(" ".join(["{a|b|c|d|e|f|g|h}"] * 400), Animals())
    assert node.count == ENDLESS
    assert nth(node, 9)[-3:] == "b b"
    many = parse("{50-60$$" + "|".join(f"w{i}" for i in range(1000)) + "}", Animals())
    assert many.count == ENDLESS
    assert nth(many, 0) == ", ".join(f"w{i}" for i in range(50))
    two = parse("{2$$" + "|".join(f"w{i}" for i in range(100)) + "}", Animals())
    assert two.count == len({nth(two, i) for i in range(two.count)}) == 100 * 99 // 2


def test_the_dice_fall_by_the_seed_alone_and_by_the_weights() -> None:
    node: Node = parse("{red|3::blue}", Animals())
    once = [drawn(node, Dice(42, image)) for image in range(1000)]
    assert once == [drawn(node, Dice(42, image)) for image in range(1000)]
    assert once != [drawn(node, Dice(43, image)) for image in range(1000)]
    assert 700 < Counter(once)["blue"] < 800
    assert f"{Dice(1, 2).fraction():.6f}" == "0.350721", "no version of Python or of sdbatch changes them"


def test_of_several_none_comes_twice_and_their_order_varies() -> None:
    node = parse("{2$$a|b|c}", Animals())
    found = {drawn(node, Dice(7, image)) for image in range(100)}
    assert found == {"a, b", "b, a", "a, c", "c, a", "b, c", "c, b"}


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return make_root(tmp_path / "root")


def lay(root: Root, **words: str) -> None:
    for name, text in words.items():
        path = root.path / "wildcards" / f"{name.replace('__', '/')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def read(root: Root, text: str) -> list[str]:
    node = parse(text, Wildcards(root))
    return [nth(node, number) for number in range(node.count)]


def test_the_files_of_words_lie_in_nested_folders_with_comments_and_weights(root: Root) -> None:
    lay(
        root,
        colours="# mine\n\nred\n 3::blue \n0::black\n",
        animals__cats="tabby\n__colours__ tom\n",
        animals__dogs="pug\n",
    )
    assert read(root, "__colours__") == ["red", "blue"]
    assert read(root, "a __animals/cats__") == ["a tabby", "a red tom", "a blue tom"]
    assert read(root, "__animals/*__") == ["tabby", "red tom", "blue tom", "pug"]
    assert read(root, "__**/dogs__") == ["pug"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("__colour__", 'there is no "wildcards/colour.txt"; did you mean __colours__?'),
        ("__dogs__", 'there is no "wildcards/dogs.txt"; did you mean __animals/dogs__?'),
        ("__zebras__", 'there is no "wildcards/zebras.txt"; put it there, with a word on each line'),
        ("__../secret__", 'there is no "wildcards/../secret.txt"; put it there, with a word on each line'),
        ("__one__", "one -> two -> one: these files of words lead back to themselves"),
        ("__open__", r"wildcards/open.txt: line 2: { at character 1 is not closed; for the sign itself write \{"),
        (
            "__leads/to/open__",
            r"wildcards/open.txt: line 2: { at character 1 is not closed; for the sign itself write \{",
        ),
        ("__empty__", '"wildcards/empty.txt" is empty; it needs a word on each line'),
        ("__bell__", "wildcards/bell.txt: line 1 contains a control character; remove it"),
        ("__out__", '"wildcards/out.txt" is a link out of the root'),
    ],
)
def test_what_is_wrong_with_a_file_of_words_is_told(root: Root, text: str, told: str) -> None:
    lay(
        root,
        colours="red\n",
        animals__dogs="pug\n",
        one="__two__\n",
        two="a\n__one__\n",
        open="a\n{b\n",
        empty="# no\n",
    )
    lay(root, leads__to__open="__open__\n", bell="a\7\n")
    (root.path.parent / "secret.txt").write_text("secret\n")
    (root.path / "wildcards/out.txt").symlink_to(root.path.parent / "secret.txt")
    with pytest.raises(JobError) as error:
        read(root, text)
    assert str(error.value).startswith(f"dynamic_prompts: {told}")


def test_files_that_double_each_other_end_at_the_longest_prompt(root: Root) -> None:
    for number in range(15):
        lay(root, **{f"f{number}": f"__f{number + 1}__ __f{number + 1}__\n"})
    lay(root, f15="a\n")
    with pytest.raises(JobError, match="more than 10,000 characters"):
        drawn(parse("__f0__", Wildcards(root)), Dice(1))
