"""Cuts text into the pieces for the search; prompts and search words are cut in the same way.

In scripts with spaces the pieces are the beginnings of each word: "truck" is found by t, tr, tru and so on. In scripts
without spaces, such as Chinese, they are all runs of one, two or three characters: 一只可爱的猫 is found by
猫, by 可爱 and by 爱的猫; a longer search text needs all its runs of three.

SQLite's own prefix index would need a list for each length, also of every fact. Its trigrams can't find two characters,
the length of most Chinese words, and cut a rare English word into frequent pieces.
"""

import re
import unicodedata

BEGINNING = 32  # characters: of longer words so many are a piece
IN_A_ROW = 3
_ROW = "\x1f"  # stands before each character of a script that puts no blanks between words


class _Folding(dict[int, str]):
    """Normalizes case, width and accents: café is found by cafe. Punctuation only separates words.

    Character by character, because Python's time to sort the marks of a letter grows with the square of their number.
    """

    def __missing__(self, code: int) -> str:
        known = unicodedata.normalize("NFKD", chr(code)).casefold()
        self[code] = "".join(map(_marked, known))
        return self[code]


_FOLDED = _Folding({ord(c): to for c, to in zip("øØłŁđĐħĦ", "oollddhh", strict=True)})  # no accents to Unicode


def _marked(character: str) -> str:
    """By Unicode category. Lo are letters of scripts without case, most of which have no spaces between words."""
    if "\u0300" <= character < "\u0370":  # the accents of Latin, Greek and Cyrillic letters
        return ""
    category = unicodedata.category(character)
    if category in {"Lo", "So", "Mn", "Mc", "Me"}:
        return _ROW + character
    return character if category[0] in "LN" else " "


def pieces(text: str) -> set[str]:
    """The pieces by which a text is found."""
    return {
        part[at : at + size]
        for part, longest in _parts(text)
        for at in (range(len(part)) if longest == IN_A_ROW else [0])
        for size in range(1, min(longest, len(part)) + 1)
    }


def pieces_of_words(text: str) -> list[str]:
    """The pieces that every text with these words has."""
    return [
        part[at : at + longest]
        for part, longest in _parts(text)
        for at in (range(max(1, len(part) - longest + 1)) if longest == IN_A_ROW else [0])
    ]


def _parts(text: str) -> list[tuple[str, int]]:
    """Words, and runs of characters in scripts without spaces, each with its longest piece."""
    found = re.findall(f"(?:{_ROW}.)+|[^{_ROW} ]+", text.translate(_FOLDED))
    return [(part.replace(_ROW, ""), IN_A_ROW if part[0] == _ROW else BEGINNING) for part in found]
