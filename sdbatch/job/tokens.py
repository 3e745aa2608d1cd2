"""How much of a prompt the text encoder reads, counted without the slow libraries."""

from functools import cache
from importlib.resources import files as package_files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

READ = 75  # of 77 positions, one each is for the start and the end
_MARKS = ("<|startoftext|>", "<|endoftext|>")
# CLIP's own, but for the words that mark the start and the end.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def unread(text: str, encoder: str) -> tuple[int, str]:
    """The number of tokens at the end of a prompt that have no effect, and their text."""
    if text.isascii() and len(text) <= READ:
        return 0, ""  # a token has at least one byte
    counted = (_bert() if encoder == "bert" else _clip()).encode(text, add_special_tokens=False)
    if len(counted.ids) <= READ:
        return 0, ""
    return len(counted.ids) - READ, text[counted.offsets[READ][0] :]


def encode(text: str, encoder: str) -> list[int]:
    """A text's tokens, without the marks of its start and end."""
    ids: list[int] = (_bert() if encoder == "bert" else _clip()).encode(text, add_special_tokens=False).ids
    return ids


@cache
def _clip() -> "Tokenizer":
    from tokenizers import (  # noqa: PLC0415 - a short prompt, as most are, needs no counting
        AddedToken,
        Regex,
        Tokenizer,
        normalizers,
        pre_tokenizers,
    )
    from tokenizers.models import BPE  # noqa: PLC0415

    data = package_files("sdbatch") / "data" / "clip"
    merges = BPE.from_file(str(data / "vocab.json"), str(data / "merges.txt"), end_of_word_suffix="</w>")
    counter = Tokenizer(merges)
    counter.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = "|".join(mark.replace("|", r"\|") for mark in _MARKS) + "|" + _WORDS
    counter.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    counter.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in _MARKS])
    return counter


@cache
def _bert() -> Any:
    from tokenizers import BertWordPieceTokenizer  # noqa: PLC0415

    return BertWordPieceTokenizer(str(package_files("sdbatch") / "data" / "bert" / "vocab.txt"), lowercase=True)
