r"""Words that vary, in a prompt of a job with `dynamic_prompts: true`.

    a {red|3::blue} car      one of them, blue three times as often
    {2$$a|b|c}               two of them; {1-2$$...} one or two, {2-$$...} two or more
    {2$$ and $$a|b|c}        with " and " between them, instead of ", "
    {red|2$$a,b,c}           red, or two of those between the commas
    __animals__              a line of wildcards/animals.txt; see wildcards.py
    \{ \} \| \$ \_           the sign itself

In square brackets | stays, as `prompt_syntax: webui` reads it. The syntax is that of sd-dynamic-prompts. Its library
(dynamicprompts 0.31) is not used: it takes 13 ms for each prompt, so minutes for a file of them; it refuses $ and __
anywhere else, and {red|2$$a,b,c}; it cuts a prompt at #, follows links out of its folder, and ends in a RecursionError
where two files name each other.
"""

import hashlib
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple, Protocol

from sdbatch.errors import JobError, printable
from sdbatch.job.parameters import MAX_PROMPT

DEEPEST = 20  # brackets in each other, and files that name each other
ENDLESS = 10**12  # counts end there
MOST_WAYS = 1_000_000  # counted for {2-3$$...}
_TOKEN = re.compile(
    r"""\\[{}|$_]
    | (?<![A-Za-z0-9_]) __(?P<name>[^\s{}|\[\]_](?:[^{}|\n\[\]]*?[^\s{}|\[\]_])?)__ (?![A-Za-z0-9_])
    | (?:(?<=[{|,])|(?<=\$\$)) \s* (?P<weight>\d{1,6}(?:\.\d{0,6})?|\.\d{1,6})::
    | (?:(?<=[{|])|(?<=::)) (?P<pick>
        \s* (?P<low>\d{1,4})? (?P<to>-)? (?P<high>\d{1,4})? \$\$ (?:(?P<between>[^${}]{0,40})\$\$)?
      )
    | \$\$ | [{}|\[\],] | [^\\{}|\[\],_$]+ | .""",
    re.DOTALL | re.VERBOSE,
)
_HOW_MANY = "{text}: before $$ stands how many, as in 2$$ or 1-2$$"
_SPECIAL = frozenset("\\{}_")
_VARIABLE = re.compile(r"\$\{\s*[A-Za-z_][\w-]*\s*(\}|:|[?!]*=)")


class Dice:
    """Random numbers that no version of Python changes: SHA-256 of a counter."""

    def __init__(self, *numbers: int) -> None:
        self._name, self._count = f"sdbatch words {numbers}", 0

    def fraction(self) -> float:
        """From 0 to below 1."""
        self._count += 1
        digest = hashlib.sha256(f"{self._name} {self._count}".encode()).digest()
        return (int.from_bytes(digest[:8]) >> 11) / (1 << 53)


class Draft:
    """A prompt while it is put together."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._left = MAX_PROMPT + 1

    def add(self, text: str) -> None:
        """Go on with this.

        Raises:
            JobError: it would be too long; files that name others twice each would make it endless.
        """
        self._left -= len(text) or 1
        if self._left < 0:
            raise JobError("the words make a prompt of more than {most:,} characters", MAX_PROMPT)
        self.parts.append(text)


class Node(Protocol):
    """A part of a prompt: in how many ways it can be read, one of them by its number, and one by the dice."""

    @property
    def count(self) -> int:
        """The number of ways, at most ENDLESS."""

    def nth(self, number: int, draft: Draft) -> None:
        """Add the way `number`, from 0."""

    def draw(self, dice: Dice, draft: Draft) -> None:
        """Add one by the dice."""


@dataclass(frozen=True)
class Text:
    """Words that stay."""

    text: str
    count: int = 1

    def nth(self, number: int, draft: Draft) -> None:  # noqa: ARG002 - there is one
        """It."""
        draft.add(self.text)

    def draw(self, dice: Dice, draft: Draft) -> None:  # noqa: ARG002
        """It."""
        draft.add(self.text)


@dataclass(frozen=True)
class Series:
    """Parts one after the other; the last varies first."""

    parts: tuple[Node, ...]

    @cached_property
    def _from(self) -> list[int]:
        """The ways of the parts from each on."""
        ways = [1]
        for part in reversed(self.parts):
            ways.append(min(ENDLESS, ways[-1] * part.count))
        return ways[::-1]

    @property
    def count(self) -> int:
        """The product."""
        return self._from[0]

    def nth(self, number: int, draft: Draft) -> None:
        """As the digits of a number."""
        for part, behind in zip(self.parts, self._from[1:], strict=True):
            own, number = divmod(number, behind)
            part.nth(own, draft)

    def draw(self, dice: Dice, draft: Draft) -> None:
        """Each for itself."""
        for part in self.parts:
            part.draw(dice, draft)


class Option(NamedTuple):
    """One of those to choose from."""

    node: Node
    weight: float = 1.0


@dataclass(frozen=True)
class Choice:
    """So many of its options, at least `low` and at most `high`."""

    options: tuple[Option, ...]
    low: int = 1
    high: int = 1
    between: str = ", "

    @cached_property
    def _ways(self) -> list[list[int]]:
        """[i][k]: the ways to take k of the options from i on, in their order."""
        if len(self.options) * self.high > MOST_WAYS:
            raise JobError("there are too many ways to take {count} of {most:,} words", self.high, len(self.options))
        table = [[1] + [0] * self.high]
        for option in reversed(self.options):
            behind, own = table[-1], option.node.count
            taken = (min(ENDLESS, one + own * other) for one, other in zip(behind[1:], behind, strict=False))
            table.append([1, *taken])
        return table[::-1]

    @cached_property
    def _before(self) -> list[int]:
        """The ways of the options before each, alone."""
        return [0, *accumulate(option.node.count for option in self.options)]

    @cached_property
    def _weights(self) -> list[float]:
        return [*accumulate(option.weight for option in self.options)]

    @property
    def count(self) -> int:
        """Without those that only have another order."""
        return min(ENDLESS, sum(self._ways[0][self.low :]))

    def nth(self, number: int, draft: Draft) -> None:
        """Few before many, the first options before the last."""
        left = self.low
        while number >= self._ways[0][left]:
            number -= self._ways[0][left]
            left += 1
        at, is_first = 0, True
        while left:
            if left == 1:  # the usual case, without a look at each line of a file
                number += self._before[at]
                at = bisect_right(self._before, number) - 1
                number -= self._before[at]
            behind = self._ways[at + 1][left - 1]
            own, rest = divmod(number, behind) if behind else (self.options[at].node.count, 0)
            if own >= self.options[at].node.count:
                number -= self.options[at].node.count * behind
            else:
                draft.add("" if is_first else self.between)
                self.options[at].node.nth(own, draft)
                number, left, is_first = rest, left - 1, False
            at += 1

    def draw(self, dice: Dice, draft: Draft) -> None:
        """By their weights, none twice, in the order in which they come."""
        wanted = self.low
        if self.high > self.low:
            wanted += int(dice.fraction() * (self.high - self.low + 1))
        for number, option in enumerate(self._drawn(dice, wanted)):
            draft.add(self.between if number else "")
            option.node.draw(dice, draft)

    def _drawn(self, dice: Dice, wanted: int) -> Iterator[Option]:
        options, sums = [*self.options], self._weights
        for number in range(wanted):
            if number:
                sums = [*accumulate(option.weight for option in options)]
            at = bisect_right(sums, dice.fraction() * sums[-1])
            yield options[at]
            if wanted > 1:
                del options[at]


class Lookup(Protocol):
    """The lines behind `__name__`."""

    def options(self, name: str, within: tuple[str, ...]) -> tuple[Option, ...]:
        """Those of a name or pattern; `within` are the files that led there.

        Raises:
            JobError: there are none, or a file leads back to itself.
        """


def parse(text: str, files: Lookup, within: tuple[str, ...] = ()) -> Node:
    r"""A prompt as parts that vary.

    Raises:
        JobError: a bracket is not closed, a file is not there, and the like.
    """
    if _SPECIAL.isdisjoint(text):
        return Text(text)
    return _Parser(text, files, within).whole()


class _Parser:
    """Goes over the tokens once; what has to be known of the rest of the text is looked up before."""

    def __init__(self, text: str, files: Lookup, within: tuple[str, ...]) -> None:
        self.text, self.files, self.within = text, files, within
        self.tokens = [*_TOKEN.finditer(text)]
        self.at = 0
        self.closed: set[int] = set()  # where [ stands that has its ]
        self.barred: set[int] = set()  # where { stands whose options are parted by |
        self._look_ahead()

    def _look_ahead(self) -> None:
        opened: list[tuple[str, int]] = []
        for token in self.tokens:
            sign = token[0]
            if sign in ("{", "["):
                opened.append((sign, token.start()))
            elif sign == "]" and opened and opened[-1][0] == "[":
                self.closed.add(opened.pop()[1])
            elif sign in ("|", "}"):
                while sign == "}" and opened and opened[-1][0] == "[":
                    opened.pop()
                if opened and sign == "}":
                    opened.pop()
                elif opened and opened[-1][0] == "{":
                    self.barred.add(opened[-1][1])
        braces = [place for sign, place in opened if sign == "{"]
        if braces:
            template = r"{sign} at character {place} is not closed; for the sign itself write \{sign}"
            raise JobError(template, "{", braces[0] + 1)

    def whole(self) -> Node:
        """Up to the end."""
        node = self._sequence("", 0)
        if self.at < len(self.tokens):
            template = r"{sign} at character {place} closes nothing; for the sign itself write \{sign}"
            raise JobError(template, "}", self.tokens[self.at].start() + 1)
        return node

    def _sequence(self, ends: str, depth: int) -> Node:
        """Up to one of `ends`, which is left, or to a } that is not its own."""
        parts: list[Node] = []
        while self.at < len(self.tokens):
            token = self.tokens[self.at]
            sign = token[0]
            if sign in ends or sign == "}":
                break
            self.at += 1
            if sign == "{":
                parts.append(self._group(token.start(), depth + 1))
            elif sign == "[" and ends and token.start() in self.closed:
                parts += [Text("["), self._sequence("]", depth), Text("]")]
                self.at += 1
            elif sign == "$$" and ends:
                raise JobError(_HOW_MANY, printable(self.text[max(0, token.start() - 20) : token.end()]))
            elif name := token["name"]:
                parts.append(self._named(name))
            else:
                parts.append(Text(sign[1:] if len(sign) == 2 and sign[0] == "\\" else sign))
        return _joined(parts, is_option=bool(ends) and ends != "]")

    def _group(self, start: int, depth: int) -> Node:
        """What { begins."""
        if depth > DEEPEST:
            raise JobError("{sign} stands in more than {most} others", "{", DEEPEST)
        if variable := _VARIABLE.match(self.text, max(0, start - 1)):
            raise JobError("{text}: there are no variables here", printable(variable[0][:40]))
        if (sign := self.text[start + 1]) in "~!@":
            template = "{text}: there is no {sign} here; for the sign itself write a space before it"
            raise JobError(template, printable(self.text[start : start + 20]), sign)
        pick = self._next_if("pick")
        separator = "|" if start in self.barred or pick is None else ","
        options = [self._option(separator, depth, may_pick=separator == "|")]
        while self.tokens[self.at][0] != "}":
            self.at += 1
            options.append(self._option(separator, depth, may_pick=separator == "|"))
        self.at += 1
        return self._choice(options, pick)

    def _option(self, ends: str, depth: int, *, may_pick: bool = False) -> Option:
        weight = self._next_if("weight")
        if may_pick and (pick := self._next_if("pick")):
            options = [self._option(",|", depth)]
            while self.tokens[self.at][0] == ",":
                self.at += 1
                options.append(self._option(",|", depth))
            node = self._choice(options, pick)
        else:
            node = self._sequence(ends, depth)
        return Option(node, float(weight["weight"]) if weight else 1.0)

    def _next_if(self, kind: str) -> re.Match[str] | None:
        """The next token, taken, if it is of this kind."""
        token = self.tokens[self.at]
        if token[kind] is None:
            return None
        self.at += 1
        return token

    def _choice(self, options: Sequence[Option], pick: re.Match[str] | None) -> Node:
        if pick and len(options) == 1 and isinstance(options[0].node, Choice):
            options = options[0].node.options  # {2$$__animals__}
        options = tuple(option for option in options if option.weight > 0)
        if not options:
            raise JobError("all words of a group have the weight 0")
        if pick is None:
            return options[0].node if len(options) == 1 else Choice(options)
        said = printable(pick[0].strip())
        low = int(pick["low"] or 1)
        high = int(pick["high"] or len(options)) if pick["to"] else low
        if not (pick["low"] or pick["high"]):
            raise JobError(_HOW_MANY, said)
        if low > len(options) or (pick["to"] and high < low):
            raise JobError("{text} asks for more than there are: {count}", said, len(options))
        between = ", " if pick["between"] is None else pick["between"]
        return Choice(options, low, min(high, len(options)), between)

    def _named(self, name: str) -> Node:
        if len(self.within) >= DEEPEST:
            raise JobError("the files of words lead through more than {most} others", DEEPEST)
        return Choice(self.files.options(name, self.within))


def _joined(parts: list[Node], *, is_option: bool) -> Node:
    """With texts side by side as one; an option without the blanks around it."""
    merged: list[Node] = []
    for part in parts:
        last = merged[-1] if merged else None
        if isinstance(part, Text) and isinstance(last, Text):
            merged[-1] = Text(last.text + part.text)
        else:
            merged.append(part)
    if is_option and merged and isinstance(merged[0], Text):
        merged[0] = Text(merged[0].text.lstrip())
    if is_option and merged and isinstance(merged[-1], Text):
        merged[-1] = Text(merged[-1].text.rstrip())
    merged = [part for part in merged if part != Text("")] or [Text("")]
    return merged[0] if len(merged) == 1 else Series(tuple(merged))


def nth(node: Node, number: int) -> str:
    """One way to read a prompt, by its number from 0."""
    draft = Draft()
    node.nth(number, draft)
    return "".join(draft.parts)


def drawn(node: Node, dice: Dice) -> str:
    """A prompt by the dice."""
    draft = Draft()
    node.draw(dice, draft)
    return "".join(draft.parts)
