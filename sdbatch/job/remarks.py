"""What of a job has no effect, or not the one that was meant: the one place that says so, before and after drawing.

None of it is an error. `validate` and the page show it, and the manifest keeps it.
"""

import re
from collections.abc import Iterator, Sequence

from sdbatch.job import tokens
from sdbatch.job.document import plain
from sdbatch.job.model_config import ModelConfig
from sdbatch.job.parameters import AnyJob, Img2Img

FAR = 2  # times as many pixels on a side as the model was trained on, or that part of them
# What the web UIs read in a prompt and the scripts do not.
_SYNTAX = (
    (r"<(?:lora|lyco|hypernet):[^<>\n]{1,200}>", "a LoRA is named in loras"),
    (r"<[\w-]{2,60}>|\bembedding:\S+", "there are no embeddings here"),
    (
        r"\[[^\[\]\n]{0,200}:[\d. ]{1,12}\]|\[[^\[\]\n]{1,200}\|[^\[\]\n]{0,200}\]",
        "a prompt stays the same at each step",
    ),
    (r"\([^()\n]{1,200}:\s*[-+]?[\d.]+\s*\)", "there are no weights here"),
    (r"\([^()\n]{1,200}\)(?:[-+]+(?![\w-])|[\d.]*\d)", "there are no weights here"),
    (r"\(\([^()\n]{1,200}\)\)|\[\[[^\[\]\n]{1,200}\]\]|\{\{[^{}\n]{1,200}\}\}", "there are no weights here"),
    (r"\{[^{}\n]{0,200}\|[^{}\n]{0,200}\}", "none of them is chosen"),
    (r"(?<!\w)__[\w/*-]{1,60}?__(?!\w)", "nothing is filled in for it"),
    (r"(?<!\S)--[a-z][\w-]{0,30}(?: +[^\s-]\S{0,30})?", "write options as fields of the job"),
)
_JOINED = re.compile(r"(?<![\w'])(?:BREAK|AND|ADDCOMM|ADDBASE|ADDCOL|ADDROW)(?![\w'])")
_JOINED_WHY = "a prompt is read as one"
_PATTERNS = [(re.compile(pattern), why) for pattern, why in _SYNTAX]


def remarks(job: AnyJob, lines: Sequence[str] | None, made: ModelConfig) -> list[str]:
    """What is to be said of a job; `lines` are those of from_file."""
    prompts = [("prompt", job.prompt), ("negative_prompt", job.negative_prompt)]
    found = [*_of_fields(job, lines)]
    for field, text in prompts if lines is None else prompts[1:]:
        found += [f"{field}: {what}" for what in _of_text(text, made)]
    return found + (_of_lines(lines, made) if lines else [])


def of_size(field: str, size: tuple[int, int], made: ModelConfig) -> list[str]:
    """That pictures are drawn much larger or smaller than those that the model was trained on."""
    side = made.side
    if not side or all(side < FAR * drawn < FAR * FAR * side for drawn in size):
        return []
    drawn = f"{size[0]}x{size[1]}"
    return [f"{field}: the model was trained on {side}x{side}; at {drawn} pictures may be noise or repeat themselves"]


def _of_fields(job: AnyJob, lines: Sequence[str] | None) -> Iterator[str]:
    """Fields that another one leaves without effect."""
    if lines is not None and job.prompt:
        yield "prompt: has no effect beside from_file"
    if job.skip_grid and job.skip_save:
        yield "skip_grid, skip_save: together they leave nothing: no pictures and no grid"
    elif job.skip_grid and job.n_rows:
        yield "n_rows: has no effect with skip_grid"
    if job.scale == 1 and job.negative_prompt:
        yield "negative_prompt: has no effect with scale: 1, which leaves guidance out"
    if job.scale == 0:
        yield "prompt: has no effect with scale: 0, which follows the negative prompt alone"
    if isinstance(job, Img2Img):
        yield from _of_img2img(job)


def _of_img2img(job: Img2Img) -> Iterator[str]:
    if job.fixed_code:
        yield "fixed_code: has no effect in img2img"
    if job.f != type(job).model_fields["f"].default:
        yield "f: has no effect in img2img"
    if int(job.strength * job.ddim_steps) == 0:
        yield (
            f"strength: {job.strength:g} of {job.ddim_steps} steps is none: the prompt has no effect, and the pictures "
            "are as init_img"
        )


def _of_text(text: str, made: ModelConfig) -> Iterator[str]:
    """What of a prompt has no effect."""
    count, rest = tokens.unread(text, made.encoder)
    if count:
        yield f"its end has no effect, {_count(count)} from {_quoted(rest)} on: the text encoder reads {tokens.READ}"
    for what, found in _plain_words(text):
        yield f"{_quoted(found)} is read as plain words: {what}"


def _plain_words(text: str) -> Iterator[tuple[str, str]]:
    """Why something in a prompt is none of what it is elsewhere, once for each reason, and what it is."""
    told: dict[str, str] = {}
    for pattern, why in _PATTERNS:
        if found := pattern.search(text):
            told.setdefault(why, found[0])
    if not text.isupper() and (found := _JOINED.search(text)):
        told[_JOINED_WHY] = found[0]
    yield from told.items()


def _of_lines(lines: Sequence[str], made: ModelConfig) -> list[str]:
    """The same of a prompt file, each reason once, with the lines that it is true of."""
    places: dict[str, list[int]] = {}
    said: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        for key, what in _of_line(line, made):
            places.setdefault(key, []).append(number)
            said.setdefault(key, what)
    return [f"from_file: {_lines(numbers)}: {said[key]}" for key, numbers in places.items()]


def _of_line(line: str, made: ModelConfig) -> Iterator[tuple[str, str]]:
    if not line.strip():
        yield "empty", "empty, and drawn as a prompt like the others"
    elif line.lstrip().startswith(("#", "//")):
        yield "comment", f"{_quoted(line.strip())} is drawn as a prompt: there are no comments here"
    count, rest = tokens.unread(line, made.encoder)
    if count:
        yield (
            "tokens",
            f"its end has no effect, {_count(count)} from {_quoted(rest)} on: the text encoder reads {tokens.READ}",
        )
    for why, found in _plain_words(line):
        yield why, f"{_quoted(found)} is read as plain words: {why}"


def _lines(numbers: list[int]) -> str:
    more = f" and {len(numbers) - 1} more" if len(numbers) > 1 else ""
    return f"line {numbers[0]}{more}"


def _count(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"


def _quoted(text: str) -> str:
    return f'"{plain(text)}"'
