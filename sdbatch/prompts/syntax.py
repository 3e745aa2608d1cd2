r"""What stable-diffusion-webui and its kin read in a prompt, as plain structures: no tokens, no files, no model.

    a (red:1.4) apple      weights: (a) 1.1, [a] 1/1.1, (a:1.4), and \( for a bracket itself
    a cat BREAK a dog      a chunk ends; see chunks.py
    a [cat:dog:0.5] sits   another prompt from half of the steps on; with 10 from the 10th on; [cat::10], [dog:10]
    a [cat|dog] sits       in turn, at each step
    a cat AND a dog :1.2   two prompts, each with a weight, guided to together
    <lora:pencil:0.8>      what the weights of the model are changed by

It follows that program's modules/prompt_parser.py and extra_networks.py (AUTOMATIC1111) to what each reads of
unbalanced brackets; where that asks a general parser, which may take for ever, this one goes over the text once.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

ROUND, SQUARE = 1.1, 1 / 1.1
MOST_BRACKETS, DEEPEST = 500, 50  # of a prompt, which with more is a text without any; in each other
_NETWORK = re.compile(r"<(\w+):(.+)", re.DOTALL)
_AND = re.compile(r"\bAND\b")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?|\d*\.\d+)")
_WHEN = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
_EMPHASIS = re.compile(
    r"\\[()\[\]\\]?|[(\[]|:\s*(?P<weight>[-+]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)|[)\]]|[^\\()\[\]:]+|:", re.DOTALL
)
_BREAK = re.compile(r"\bBREAK\b")
_EDITING = re.compile(r"(?:[^\\\[\]():|]|\\.)+|[\[\]():|\\]")


class Weighted(NamedTuple):
    """A run of text of one weight."""

    text: str
    weight: float = 1.0


BREAK = Weighted("BREAK", -1.0)  # ends a chunk; within brackets, which change its weight, it is a word as there


class Network(NamedTuple):
    """What stands in <kind:name:...>."""

    kind: str
    arguments: tuple[str, ...]


class Prompt(NamedTuple):
    """One of those that AND joins, and its weight."""

    text: str
    weight: float = 1.0


class Stage(NamedTuple):
    """A prompt up to a prediction of the network, counted from 0, which still has it."""

    last: int
    text: str


def without_networks(text: str) -> tuple[str, list[Network]]:
    """A prompt without what stands in <kind:...>, and that."""
    *inside, rest = text.split(">")
    kept, found = [], []
    for part in inside:
        if match := _NETWORK.search(part):
            found.append(Network(match[1], tuple(match[2].split(":"))))
        kept.append(part[: match.start()] if match else f"{part}>")
    return "".join([*kept, rest]), found


def joined(text: str) -> list[Prompt]:
    """The prompts that AND joins; a weight stands at the end of each, behind a colon."""
    return [_prompt(part) for part in _AND.split(text)]


def _prompt(text: str) -> Prompt:
    before, colon, number = text.rpartition(":")
    is_weighted = colon and _NUMBER.fullmatch(number.strip())
    return Prompt(before.rstrip(), float(number)) if is_weighted else Prompt(text)


def emphasis(text: str) -> list[Weighted]:
    """A prompt's runs of equal weight, at least one; brackets that are not closed hold to the end."""
    if text.count("(") + text.count("[") > MOST_BRACKETS:
        return [Weighted(text)]
    runs: list[str] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def multiply(start: int, factor: float) -> None:
        weights[start:] = [weight * factor for weight in weights[start:]]

    for match in _EMPHASIS.finditer(text):
        sign = match[0]
        if sign in opened:
            opened[sign].append(len(runs))
        elif match["weight"] and opened["("]:
            multiply(opened["("].pop(), float(match["weight"]))
        elif sign == ")" and opened["("]:
            multiply(opened["("].pop(), ROUND)
        elif sign == "]" and opened["["]:
            multiply(opened["["].pop(), SQUARE)
        else:
            found = [Weighted(sign[1:])] if sign[0] == "\\" else _at_breaks(sign)
            runs += [run.text for run in found]
            weights += [run.weight for run in found]
    for sign, factor in (("(", ROUND), ("[", SQUARE)):
        for start in opened[sign]:
            multiply(start, factor)
    return [*_merged(runs or [""], weights or [1.0])]


def _at_breaks(text: str) -> list[Weighted]:
    """A text without brackets, parted by BREAK, which takes the blanks around it."""
    first, *others = _BREAK.split(text)
    found = [Weighted(first.rstrip() if others else first)]
    for number, other in enumerate(others, 1):
        found += [BREAK, Weighted(other.strip() if number < len(others) else other.lstrip())]
    return found


def _merged(runs: Sequence[str], weights: Sequence[float]) -> Iterator[Weighted]:
    for weight, run in groupby(zip(weights, runs, strict=True), key=itemgetter(0)):
        yield Weighted("".join(text for _, text in run), weight)


# Editing


@dataclass(frozen=True)
class _Change:
    """[before:after:when]."""

    before: "_Text"
    after: "_Text"
    when: str

    def last(self, predictions: int) -> int:
        """The last prediction that has what stands before; a number with a point is a part of all."""
        when = float(self.when) * (predictions if "." in self.when else 1)
        return int(max(0, min(predictions, when)))


@dataclass(frozen=True)
class _Turns:
    """[one|other|...]."""

    choices: "list[_Text]"


_Text = list[str | _Change | _Turns]


@dataclass
class _Bracket:
    """One that is open: its texts, and the signs that stand between them."""

    sign: str
    texts: list[_Text] = field(default_factory=lambda: [[]])
    between: list[str] = field(default_factory=list)

    def closed(self, sign: str) -> _Text:
        """What it stands for; nothing where it is no more than signs."""
        pair, kinds = self.sign + sign, {*self.between}
        if pair == "[]" and kinds == {":"} and len(self.texts) <= 3:
            texts: list[_Text] = [[], *self.texts]
            when = "".join(map(str, texts.pop())).strip()
            return [_Change(texts[-2], texts[-1], when)] if _WHEN.fullmatch(when) else []
        if pair == "[]" and kinds == {"|"}:
            return [_Turns(self.texts)]
        is_emphasis = (pair == "[]" and not kinds) or (pair == "()" and kinds <= {":"} and len(self.texts) <= 2)
        return self.as_signs(sign) if is_emphasis else []

    def as_signs(self, closing: str = "") -> _Text:
        """All in it as it stands there."""
        found: _Text = [self.sign]
        for text, sign in zip(self.texts, [*self.between, closing], strict=True):
            found += [*text, sign]
        return found


def stages(text: str, predictions: int) -> list[Stage]:
    """A prompt over the predictions that a picture takes: one stage where nothing changes, or it can't be read."""
    whole = _edited(text)
    if whole is None:
        return [Stage(predictions, text)]
    return [Stage(end, _at(whole, end, predictions)) for end in sorted({predictions, *_ends(whole, predictions)})]


def _edited(text: str) -> _Text | None:
    r"""A prompt's changes and turns; None where a | or a \ belongs to none, as then nothing is read there."""
    opened = [_Bracket("")]

    def flatten() -> None:
        """What can't close makes all around it signs as well."""
        while len(opened) > 1:
            inner = opened.pop()
            opened[-1].texts[-1] += inner.as_signs()

    for match in _EDITING.finditer(text):
        sign = match[0]
        if sign == "\\" or len(opened) > DEEPEST:
            return None
        if sign in ("(", "["):
            opened.append(_Bracket(sign))
        elif sign in (":", "|") and len(opened) > 1:
            opened[-1].between.append(sign)
            opened[-1].texts.append([])
        elif sign in (")", "]"):
            if closed := opened[-1].closed(sign):
                opened.pop()
            else:
                flatten()
            opened[-1].texts[-1] += closed or [sign]
        else:
            opened[-1].texts[-1].append(sign)
    flatten()
    whole = opened[0].texts[0]
    return None if "|" in whole else whole


def _ends(text: _Text, predictions: int) -> Iterator[int]:
    """Behind which predictions something changes."""
    for part in text:
        match part:
            case _Change():
                last = part.last(predictions)
                yield from [last] if last else []
                yield from (end for inner in (part.before, part.after) for end in _ends(inner, predictions))
            case _Turns():
                yield from range(1, predictions + 1)


def _at(text: _Text, number: int, predictions: int) -> str:
    """The prompt at a prediction, counted from 1."""
    return "".join(_parts_at(text, number, predictions))


def _parts_at(text: _Text, number: int, predictions: int) -> Iterator[str]:
    for part in text:
        match part:
            case str():
                yield part
            case _Change():
                inner = part.before if number <= part.last(predictions) else part.after
                yield from _parts_at(inner, number, predictions)
            case _Turns(choices):
                yield from _parts_at(choices[(number - 1) % len(choices)], number, predictions)
