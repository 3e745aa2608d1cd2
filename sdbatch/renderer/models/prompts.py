"""Prompts in the web UIs' syntax, encoded: chunk by chunk, weighted, and another from some prediction on.

As stable-diffusion-webui does it (modules/sd_hijack_clip.py, sd_emphasis.py): the hidden states of a chunk are
multiplied by their tokens' weights, and then as a whole by what brings their mean back. All that a prompt becomes over
the steps is one batch, with one mean.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdbatch.job.parameters import AnyJob
from sdbatch.prompts.chunks import Chunk, Encode, Vector, chunks
from sdbatch.prompts.syntax import Stage, joined, stages, without_networks
from sdbatch.renderer.models.models import Model
from sdbatch.renderer.networks.tokenizer import TEXT_POSITIONS, Tokenizer
from sdbatch.renderer.sampling.guidance import Led, Part
from sdbatch.renderer.weights.embedding import read_embedding

Learned = Mapping[str, Tensor]  # an embedding's vectors, [vectors, width], by its name
Replaced = Sequence[tuple[int, Tensor]]  # in one row, positions and what stands there in the place of a token


def read_embeddings(
    model: Model, job: AnyJob, lines: Sequence[str] | None, files: Mapping[str, Path]
) -> dict[str, Tensor]:
    """Those of some embeddings that a job's prompts name, read.

    Raises:
        JobError: one can't be read, or is for another model.
    """
    if not files:
        return {}
    prompts = [part.text for text in lines or [job.prompt] for part in joined(without_networks(text)[0])]
    texts = {stage.text for text in {*prompts, job.negative_prompt} for stage in stages(text, job.predictions)}
    found = [chunk for text in texts for chunk in chunks(text, encoder_of(model), dict.fromkeys(files, 1))]
    named = {token.embedding for chunk in found for token in chunk.tokens if isinstance(token, Vector)}
    width = model.text_encoder.get_input_embeddings().embedding_dim
    return {name: read_embedding(files[name], width, name) for name in sorted(named)}


def encoder_of(model: Model) -> Encode:
    """How a model's texts become tokens."""
    return model.tokenizer.encode


@dataclass(frozen=True)
class Timeline:
    """What a prompt is over the predictions: encoded, [tokens, width], up to the last that has it."""

    last: Sequence[int]
    contexts: Sequence[Tensor]

    def place(self, prediction: int) -> int:
        """Which of them holds at a prediction, from 0; behind the last the first, as in that program."""
        place = bisect_left(self.last, prediction)
        return place if place < len(self.last) else 0


@dataclass(frozen=True)
class PromptEncoder:
    """Encodes prompts of one job.

    Attributes:
        predictions: how many of them a picture is said to take, for [from:to:0.5].
        in_rows: puts rows through a network as memory allows.
    """

    model: Model
    learned: Learned
    clip_skip: int
    predictions: int
    in_rows: Callable[..., Tensor]

    def led(self, prompts: Sequence[str], negative: str, scale: float) -> Callable[[int], Led]:
        """What a batch is led to, prediction by prediction."""
        known: dict[str, Timeline] = {}
        parts = [joined(without_networks(prompt)[0]) for prompt in prompts]
        for text in dict.fromkeys(part.text for picture in parts for part in picture):
            known[text] = self.timeline(text)
        is_guided = scale != 1 or any(len(picture) > 1 or picture[0].weight != 1 for picture in parts)
        away = self.timeline(negative) if is_guided else None
        all_lines = [*known.values(), *([away] if away else [])]
        made: dict[tuple[int, ...], Led] = {}

        def led(prediction: int) -> Led:
            places = tuple(line.place(prediction) for line in all_lines)
            if places not in made:
                now = {text: line.contexts[line.place(prediction)] for text, line in known.items()}
                negatives = [away.contexts[away.place(prediction)]] * len(parts) if away else None
                made[places] = Led([_as_long([Part(now[p.text], p.weight) for p in each]) for each in parts], negatives)
            return made[places]

        return led

    def timeline(self, text: str) -> Timeline:
        """A prompt without networks and AND."""
        found = stages(text, self.predictions)
        encoded = self._encode(found)
        return Timeline([stage.last for stage in found], [encoded[stage.text] for stage in found])

    def _encode(self, found: Sequence[Stage]) -> dict[str, Tensor]:
        """The texts of all stages, each once, [tokens, width]."""
        texts = [stage.text for stage in found]
        each = {text: self._chunks(text) for text in dict.fromkeys(texts)}
        counts = torch.tensor([texts.count(text) for text in each], device=self.model.device)
        most = max(map(len, each.values()))
        columns = [
            self._column([own[i] if i < len(own) else Chunk() for own in each.values()], counts) for i in range(most)
        ]
        return dict(zip(each, torch.cat(columns, dim=1), strict=True))

    def _chunks(self, text: str) -> list[Chunk]:
        return chunks(text, encoder_of(self.model), {name: len(vectors) for name, vectors in self.learned.items()})

    def _column(self, column: Sequence[Chunk], counts: Tensor) -> Tensor:
        """The same chunk of several prompts, encoded and weighted, [prompts, 77, width]."""
        ids = [_ids(chunk, self.model.tokenizer) for chunk in column]
        replaced = [
            [(at, self.learned[token.embedding][token.number])
             for at, token in enumerate(chunk.tokens, 1) if isinstance(token, Vector)]
            for chunk in column
        ]  # fmt: skip

        def encode() -> Tensor:
            return self.in_rows(self._hidden, torch.tensor(ids, device=self.model.device), replaced)

        known = (*map(tuple, ids), self.clip_skip)
        z = encode() if any(replaced) else self.model.encoded.get(known, encode)
        weights = [[1.0, *chunk.weights, *[1.0] * (TEXT_POSITIONS - 1 - len(chunk.weights))] for chunk in column]
        if all(weight == 1 for row in weights for weight in row):
            return z
        weighted = z * torch.tensor(weights, device=z.device, dtype=z.dtype)[:, :, None]
        before, after = ((each.mean(dim=(1, 2)) * counts).sum() for each in (z, weighted))
        return weighted * (before / after)

    def _hidden(self, ids: Tensor, replaced: Sequence[Replaced]) -> Tensor:
        with _put_in(self.model.text_encoder.get_input_embeddings(), replaced):
            return self.model.encode_tokens(ids, self.clip_skip)


def _ids(chunk: Chunk, tokenizer: Tokenizer) -> list[int]:
    """A chunk between its marks, filled up; a vector's place is any token's."""
    return tokenizer.marked([0 if isinstance(token, Vector) else token for token in chunk.tokens])


@contextmanager
def _put_in(layer: Any, replaced: Sequence[Replaced]) -> Iterator[None]:
    """Inside, a layer that looks tokens up gives vectors in the place of some."""

    def replace(_layer: Any, _ids: Any, found: Tensor) -> Tensor:
        for row, places in enumerate(replaced):
            for at, vector in places:
                found[row, at] = vector.to(found)
        return found

    hook = layer.register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()


def _as_long(parts: list[Part]) -> list[Part]:
    """The prompts of a picture in one length: the last vector of a shorter one is repeated, as in that program."""
    most = max(len(part.context) for part in parts)
    return [
        Part(torch.cat([part.context, part.context[-1:].expand(most - len(part.context), -1)]), part.weight)
        for part in parts
    ]
