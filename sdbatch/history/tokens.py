"""Cut text into the pieces that it is searched by. Prompts and the words of a search are cut in the same way.

Where spaces divide words, the pieces are the beginnings of each word: "truck" is found by t, tr, tru and so on.
Where none do, as in Chinese, the pieces are all runs of one, two or three characters: 一只可爱的猫 is found by 猫,
by 可爱 and by 爱的猫.
SQLite's own trigrams can't find two characters, which most Chinese words have, and cut a rare English word into
frequent pieces.
"""

import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

BEGINNING = 16  # characters: of longer words so many are a piece
IN_A_ROW = 3
SLICE = 200  # characters
# The accents of Latin, Greek and Cyrillic letters, and the letters that Unicode takes for no accented ones.
_PLAINER: dict[int, str] = dict.fromkeys(range(0x300, 0x370), "") | {
    ord(c): to for c, to in zip("øłđħ", "oldh", strict=True)
}


class Part(NamedTuple):
    """A word of letters that stand apart, or a row of characters that don't (`is_row`)."""

    text: str
    is_row: bool

    @property
    def is_long(self) -> bool:
        """Whether a text that has its pieces need not have it."""
        return len(self.text) > (IN_A_ROW if self.is_row else BEGINNING)


def parts(text: str) -> list[Part]:
    """What a text is made of, in one case and width; punctuation only parts it."""
    return [Part("".join(some), kind == "row") for kind, some in groupby(_folded(text), _kind) if kind != "between"]


def pieces(text: str) -> set[str]:
    """What a text is found by."""
    return {piece for part in parts(text) for piece in _pieces(part)}


def pieces_of_word(part: Part) -> list[str]:
    """The pieces of every text that has a part in it."""
    if not part.is_row:
        return [part.text[:BEGINNING]]
    return [part.text[at : at + IN_A_ROW] for at in range(max(1, len(part.text) - IN_A_ROW + 1))]


def has(text: str, wanted: list[Part]) -> bool:
    """Whether a text has all of these in it: words from their beginning, rows anywhere."""
    folded = _folded(text)
    if not all(part.text in folded for part in wanted):  # thousands may have the pieces alone: to tell soon
        return False
    there = parts(text)
    return all(any(_is_in(part, each) for each in there) for part in wanted)


def _is_in(part: Part, other: Part) -> bool:
    if part.is_row != other.is_row:
        return False
    return part.text in other.text if part.is_row else other.text.startswith(part.text)


def _pieces(part: Part) -> Iterator[str]:
    if not part.is_row:
        yield from (part.text[:size] for size in range(1, min(len(part.text), BEGINNING) + 1))
        return
    for size in range(1, IN_A_ROW + 1):
        yield from (part.text[at : at + size] for at in range(len(part.text) - size + 1))


def _folded(text: str) -> str:
    """In one case and width, and without accents: café is found by cafe, and the other way."""
    return text.lower() if text.isascii() else "".join(map(_folded_slice, _slices(text)))


def _folded_slice(text: str) -> str:
    known = unicodedata.normalize("NFKD", text.encode("utf-8", "replace").decode()).casefold()
    # Marks of other scripts than these make another letter, as in が of か: they are put together again.
    return unicodedata.normalize("NFKC", known.translate(_PLAINER))


def _slices(text: str) -> Iterator[str]:
    """A text in short ones, cut where a letter begins: Python's time to sort marks grows with the square of a row."""
    begin = 0
    while begin < len(text):
        end = begin + SLICE
        while end < min(len(text), begin + 2 * SLICE) and _goes_on(text[end]):
            end += 1
        yield text[begin:end]
        begin = end


def _goes_on(character: str) -> bool:
    """Whether it may be part of the letter before it: a mark, or the rest of a Korean syllable."""
    return unicodedata.category(character)[0] == "M" or "\u1160" <= character <= "\u11ff"


@lru_cache(maxsize=1 << 16)
def _kind(character: str) -> str:
    """By Unicode's category. Lo are the letters of scripts without cases, most of which put no blanks between words."""
    category = unicodedata.category(character)
    if category in {"Lo", "So", "Mn", "Mc", "Me"}:
        return "row"
    return "word" if category[0] in "LN" else "between"
