"""Cut text into the pieces that it is searched by. Prompts and the words of a search are cut in the same way.

Where spaces divide words, the pieces are the beginnings of each word: "truck" is found by t, tr, tru and so on.
Where none do, as in Chinese, the pieces are all runs of one, two or three characters: 一只可爱的猫 is found by 猫,
by 可爱 and by 爱的猫; of longer runs all threes must be there.
SQLite's own prefixes would need a list for each length, of every fact beside the words too; its trigrams can't find
two characters, which most Chinese words have, and cut a rare English word into frequent pieces.
"""

import re
import unicodedata

BEGINNING = 32  # characters: of longer words so many are a piece
IN_A_ROW = 3
_ROW = "\x1f"  # stands before each character of a script that puts no blanks between words


class _Folding(dict[int, str]):
    """Characters in one case and width and without accents: café is found by cafe. Punctuation only parts words.

    One by one, as Python's time to sort the marks of a letter grows with the square of their number.
    """

    def __missing__(self, code: int) -> str:
        known = unicodedata.normalize("NFKD", chr(code)).casefold()
        self[code] = "".join(map(_marked, known))
        return self[code]


_FOLDED = _Folding({ord(c): to for c, to in zip("øØłŁđĐħĦ", "oollddhh", strict=True)})  # no accents to Unicode


def _marked(character: str) -> str:
    """By Unicode's category. Lo are the letters of scripts without cases, most of which put no blanks between words."""
    if "\u0300" <= character < "\u0370":  # the accents of Latin, Greek and Cyrillic letters
        return ""
    category = unicodedata.category(character)
    if category in {"Lo", "So", "Mn", "Mc", "Me"}:
        return _ROW + character
    return character if category[0] in "LN" else " "


def pieces(text: str) -> set[str]:
    """What a text is found by."""
    return {
        part[at : at + size]
        for part, longest in _parts(text)
        for at in (range(len(part)) if longest == IN_A_ROW else [0])
        for size in range(1, min(longest, len(part)) + 1)
    }


def pieces_of_words(text: str) -> list[str]:
    """The pieces of every text that has these words in it."""
    return [
        part[at : at + longest]
        for part, longest in _parts(text)
        for at in (range(max(1, len(part) - longest + 1)) if longest == IN_A_ROW else [0])
    ]


def _parts(text: str) -> list[tuple[str, int]]:
    """The words of a text, and the rows of characters that don't stand apart; each with its longest piece."""
    found = re.findall(f"(?:{_ROW}.)+|[^{_ROW} ]+", text.translate(_FOLDED))
    return [(part.replace(_ROW, ""), IN_A_ROW if part[0] == _ROW else BEGINNING) for part in found]
