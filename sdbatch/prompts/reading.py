"""How a prompt is read, for a person to see before it is drawn: chunks, weights, tokens, and what was recognised."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from sdbatch import messages
from sdbatch.errors import printable
from sdbatch.job import tokens
from sdbatch.job.parameters import AnyJob
from sdbatch.messages import Message
from sdbatch.prompts.chunks import Vector, chunks
from sdbatch.prompts.syntax import BREAK, Weighted, emphasis, joined, stages, without_networks
from sdbatch.prompts.weights import PromptWeights, header_of
from sdbatch.storage.root import BUNDLED, Root

MOST_STAGES, MOST_LETTERS = 4, 400  # of a prompt that changes; of a line


def readings(job: AnyJob, lines: Sequence[str] | None, named: PromptWeights, root: Root, encoder: str) -> Iterator[str]:
    """Lines on the prompt, of `from_file` the first, and on the negative one; nothing where they are plain text."""
    if job.prompt_syntax != "webui":
        return
    used: dict[str, None] = {}
    for field, text in (("prompt", lines[0] if lines else job.prompt), ("negative_prompt", job.negative_prompt)):
        parts = joined(without_networks(text)[0]) if field == "prompt" else [(text, 1.0)]
        for number, (part, weight) in enumerate(parts, 1):
            count = Message(" {number} of {count}", number, len(parts)) if len(parts) > 1 else ""
            found = stages(part, job.predictions) if part.strip() else []
            for place, stage in enumerate(found[:MOST_STAGES]):
                since = Message(" from step {number} on", found[place - 1].last + 2) if place else ""
                size, runs = _chunked(stage.text, named.embeddings, encoder, used)
                head = messages.joined("", [field, count, _times(weight), since])
                yield Message("{field}: {size}: {text}", head, size, printable(runs[:MOST_LETTERS]))
            if len(found) > MOST_STAGES:
                yield Message("{field}: {count} more changes", field, len(found) - MOST_STAGES)
    for path, weight in named.loras:
        yield Message("LoRA {name}: {path}", printable(path.stem + _times(weight)), printable(root.show(path)))
    for name in used:
        shown, lies = printable(name), printable(root.show(named.embeddings[name]))
        if vectors := _vectors(name, named.embeddings[name]):
            yield Message("embedding {name}: {path}, {count} vectors", shown, lies, vectors)
        else:
            yield Message("embedding {name}: {path}, counted as one token here", shown, lies)


def _chunked(text: str, embeddings: Mapping[str, Path], encoder: str, used: dict[str, None]) -> tuple[Message, str]:
    """Of one text: how many tokens its chunks have, and its runs with their weights."""
    counts = {name: _vectors(name, path) or 1 for name, path in embeddings.items()}
    found = chunks(text, partial(tokens.encode, encoder=encoder), counts)
    used |= {token.embedding: None for chunk in found for token in chunk.tokens if isinstance(token, Vector)}
    numbers = " + ".join(str(len(chunk.tokens)) for chunk in found)
    size = Message("{count} tokens", numbers)
    if len(found) > 1:
        size = Message("{count} chunks, {numbers} tokens", len(found), numbers)
    return size, " ".join(_run(run) for run in emphasis(text) if run.text.strip())


def _run(run: Weighted) -> str:
    return "BREAK" if run == BREAK else f'"{run.text.strip()}"{_times(run.weight)}'


def _times(weight: float) -> str:
    return "" if weight == 1 else f" x {weight:.4g}"


def _vectors(name: str, path: Path) -> int:
    """How many vectors an embedding has, where its file says so at its beginning; else 0."""
    header = header_of(path)
    own = [about for key, about in header.items() if key.startswith(f"{BUNDLED}{name}.")] or [*header.values()]
    try:
        (shape,) = (about["shape"] for about in own)
        return int(shape[0]) if len(shape) > 1 else 1
    except (ValueError, LookupError, TypeError):
        return 0
