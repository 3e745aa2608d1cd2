"""Text as what it is found by: pieces of up to three characters, cut alike from a prompt and from the words looked for.

SQLite's own trigrams find nothing shorter than three characters, and most Chinese words have two. So the pieces are
cut here: every three characters in a row, shorter ones unless they are plain letters and digits, and of plain words
the first letter and the first two. "a blue truck" is found by "t", "tr", "ruck" and "truck", and 一只可爱的猫 by 猫,
可爱 and 可爱的.
"""

import unicodedata

LONGEST = 3  # characters of a piece: a text that has all pieces of a longer word need not hold the word


def fold(text: str) -> str:
    """Text as it is compared: letters in one case, full-width forms as plain ones."""
    known = text.encode("utf-8", "replace").decode().replace("\0", " ")
    return unicodedata.normalize("NFKC", known).casefold()


def pieces(text: str) -> set[str]:
    """What a text is found by."""
    found = set()
    for chunk in fold(text).split():
        for at in range(len(chunk)):
            starts_word = at == 0 or not _is_plain(chunk[at - 1])
            for size in range(1, LONGEST + 1):
                piece = chunk[at : at + size]
                if len(piece) == size and (size == LONGEST or starts_word or not _is_plain(piece)):
                    found.add(piece)
    return found


def words(text: str) -> list[str]:
    """The words that somebody looks for, as they are compared."""
    return fold(text).split()


def pieces_of_word(word: str) -> list[str]:
    """The pieces that every text has that holds a word."""
    return [word[at : at + LONGEST] for at in range(max(1, len(word) - LONGEST + 1))]


def _is_plain(piece: str) -> bool:
    return piece.isascii() and piece.isalnum()
