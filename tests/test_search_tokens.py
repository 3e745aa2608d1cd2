"""Pieces of text: what finds a prompt, and what doesn't."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdbatch.history.tokens import pieces, pieces_of_words


def finds(words: str, text: str) -> bool:
    """As the history looks: all pieces are there."""
    return {*pieces_of_words(words)} <= pieces(text)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("truck", "A nice blue Truck."),
        ("t", "a truck"),
        ("tru", "a truck"),
        ("TRUCK blue", "a blue truck"),
        ("transforming", "a car transforming, into"),
        ("猫", "一只可爱的猫"),
        ("汽车", "蓝色汽车、在雨中"),
        ("可爱的", "一只可爱的猫"),
        ("可爱的猫", "一只可爱的猫"),
        ("4k画质", "高清, 4K画质"),
        ("\uff54\uff52uck", "truck"),  # full-width letters
        ("spider-man", "Spider-Man on the right"),
        ("1.3", "(blue:1.3)"),
        ("синий", "Синий грузовик"),
        ("ラーメン", "美味しいラーメン"),
        ("🎨", "paint🎨!"),
    ],
)
def test_words_find_a_text_that_has_them(words: str, text: str) -> None:
    assert finds(words, text)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("ruck", "a truck"),
        ("trucks", "a truck"),
        ("truck red", "a blue truck"),
        ("transformer", "a car transforming"),
        ("electroencephalographer", "an electroencephalogram"),
        ("车汽", "汽车"),
        ("可爱的狗", "可爱的猫, 的狗"),
    ],
)
def test_words_do_not_find_a_text_without_them(words: str, text: str) -> None:
    assert not finds(words, text)


@given(st.text(max_size=200))
def test_every_text_is_found_by_itself_and_by_any_of_its_pieces(text: str) -> None:
    assert all(finds(words, text) for words in (text, *pieces(text)))


@given(st.text(max_size=200))
def test_pieces_hold_nothing_that_sqlite_takes_for_the_end_of_one(text: str) -> None:
    assert not any(piece != piece.strip() or " " in piece or "\0" in piece or "=" in piece for piece in pieces(text))
