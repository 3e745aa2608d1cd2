"""The words of a text encoder as tokens, with the marks that it expects: 77 to a prompt."""

from dataclasses import dataclass

from sdbatch.job import tokens

TEXT_POSITIONS = 77  # CLIP's; 75 for the prompt, one each for its start and end
_VOCABULARY = {"clip": 49408, "bert": 30522}
_MARKS = {"clip": (49406, 49407), "bert": (101, 102)}  # <|startoftext|> and <|endoftext|>, [CLS] and [SEP]


@dataclass(frozen=True)
class Tokenizer:
    """Of one encoder.

    Attributes:
        encoder: clip or bert.
        padding: the token that fills a prompt up.
    """

    encoder: str
    padding: int

    def __len__(self) -> int:
        return _VOCABULARY[self.encoder]

    @property
    def marks(self) -> tuple[int, int]:
        """The tokens before and behind a prompt."""
        return _MARKS[self.encoder]

    def encode(self, text: str) -> list[int]:
        """A text's tokens, without marks."""
        return tokens.encode(text, self.encoder)

    def marked(self, found: list[int]) -> list[int]:
        """Tokens as the encoder reads them: 77, marked and filled up; the end of too many is left out."""
        start, end = self.marks
        found = [start, *found[: TEXT_POSITIONS - 2], end]
        return found + [self.padding] * (TEXT_POSITIONS - len(found))


def clip_tokenizer(padding: int = 49407) -> Tokenizer:
    """OpenAI's byte-pair vocabulary; its CLIP fills up with the end mark, OpenCLIP with token 0, "!"."""
    return Tokenizer("clip", padding)


def bert_tokenizer() -> Tokenizer:
    """Google's bert-base-uncased."""
    return Tokenizer("bert", 0)
