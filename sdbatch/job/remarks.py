"""Parts of a job that have no effect, or not the expected one.

They are no errors. `validate` and the page show them, and the manifest keeps them.
"""

import re
from collections.abc import Iterator, Sequence

from sdbatch.job import tokens
from sdbatch.job.document import plain
from sdbatch.job.model_config import ModelConfig
from sdbatch.job.parameters import AnyJob, Img2Img
from sdbatch.messages import Message

FAR = 2  # times as many pixels on a side as the model was trained on, or that part of them
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")  # which from_file_syntax: options reads
_WEBUI = Message("only prompt_syntax: webui reads it")
# Prompt syntax of the web UIs that the scripts do not know.
_SYNTAX = (
    (r"<(?:lora|lyco|hypernet):[^<>\n]{1,200}>", Message("name a LoRA in `loras`, or set prompt_syntax: webui")),
    (r"<[\w-]{2,60}>|\bembedding:\S+", Message("with prompt_syntax: webui embeddings go by their bare names")),
    (
        r"\[[^\[\]\n]{0,200}:[\d. ]{1,12}\]|\[[^\[\]\n]{1,200}\|[^\[\]\n]{0,200}\]",
        _WEBUI,
    ),
    (r"\([^()\n]{1,200}:\s*[-+]?[\d.]+\s*\)|\(\([^()\n]{1,200}\)\)|\[\[[^\[\]\n]{1,200}\]\]", _WEBUI),
    (r"\([^()\n]{1,200}\)(?:[-+]+(?![\w-])|[\d.]*\d)", Message("there are no weights here")),
    (r"\{\{[^{}\n]{1,200}\}\}", Message("there are no weights here")),
    (r"\{[^{}\n]{0,200}\|[^{}\n]{0,200}\}", Message("with dynamic_prompts: true one of them is chosen")),
    (r"(?<!\w)__[\w/*-]{1,60}?__(?!\w)", Message("wildcards are filled in with dynamic_prompts: true")),
    (
        r"(?<!\S)--[a-z][\w-]{0,30}(?: +[^\s-]\S{0,30})?",
        Message("write options as fields of the job, or in a prompt file with from_file_syntax: options"),
    ),
)
_JOINED = re.compile(r"(?<![\w'])(?:BREAK|AND|ADDCOMM|ADDBASE|ADDCOL|ADDROW)(?![\w'])")
_JOINED_WHY = Message("a prompt is read as one, but for BREAK and AND with prompt_syntax: webui")
_PATTERNS = [(re.compile(pattern), why) for pattern, why in _SYNTAX]
_NOWHERE = [(pattern, why) for pattern, why in _PATTERNS if "webui" not in why]


def remarks(job: AnyJob, lines: Sequence[str] | None, made: ModelConfig) -> list[str]:
    """The remarks on a job; `lines` are those of from_file."""
    prompts = [("prompt", job.prompt), ("negative_prompt", job.negative_prompt)]
    found = [*_of_fields(job, lines)]
    if job.clip_skip > 1 and made.encoder != "clip":
        found.append(Message("clip_skip: has no effect on this model: it is for v1's text encoder"))
    is_webui = job.prompt_syntax == "webui"
    for field, text in prompts if lines is None else prompts[1:]:
        said = (what for _, what in _of_text(text, made, is_webui=is_webui))
        found += [Message("{field}: {problem}", field, what) for what in said]
    return found + (_of_lines(lines, made, is_webui=is_webui) if lines else [])


def of_size(field: str, size: tuple[int, int], made: ModelConfig) -> list[str]:
    """Images are much larger or smaller than those the model was trained on."""
    side = made.side
    if not side or all(side < FAR * drawn < FAR * FAR * side for drawn in size):
        return []
    said = (
        "{field}: the model was trained on {side}x{side}; at {width}x{height} images may be noise or repeat themselves"
    )
    return [Message(said, field, side, *size)]


def _of_fields(job: AnyJob, lines: Sequence[str] | None) -> Iterator[str]:
    """Fields without effect because of another field."""
    if lines is not None and job.prompt:
        yield Message("prompt: has no effect together with from_file")
    if lines is not None and job.from_file.lower().endswith(TABLES):
        yield Message("from_file: each line is read as a prompt; with from_file_syntax: options as the row of a table")
    if job.skip_grid and job.skip_save:
        yield Message("skip_grid, skip_save: together they write nothing: no images and no grid")
    elif job.skip_grid and job.n_rows:
        yield Message("n_rows: has no effect with skip_grid")
    if job.scale == 1 and job.negative_prompt:
        yield Message("negative_prompt: has no effect with scale: 1, which turns guidance off")
    if job.scale == 0:
        yield Message("prompt: has no effect with scale: 0, which follows only the negative prompt")
    if isinstance(job, Img2Img):
        yield from _of_img2img(job)


def _of_img2img(job: Img2Img) -> Iterator[str]:
    if job.fixed_code:
        yield Message("fixed_code: has no effect in img2img")
    if job.f != type(job).model_fields["f"].default:
        yield Message("f: has no effect in img2img")
    if int(job.strength * job.ddim_steps) == 0:
        template = "strength: {strength} of {steps} steps is no step: the prompt has no effect; images equal init_img"
        yield Message(template, f"{job.strength:g}", job.ddim_steps)


def _of_text(text: str, made: ModelConfig, *, is_webui: bool) -> Iterator[tuple[str, str]]:
    """Parts of a prompt without effect, with a key for each kind."""
    count, rest = (0, "") if is_webui else tokens.unread(text, made.encoder)
    if count:
        yield "tokens", _too_long(count, rest)
    for why, found in _plain_words(text, is_webui=is_webui):
        yield why, Message("{text} is read as plain words: {why}", _quoted(found), why)


def _plain_words(text: str, *, is_webui: bool) -> Iterator[tuple[str, str]]:
    """Syntax of other programs that is plain text here, each reason once."""
    told: dict[str, str] = {}
    for pattern, why in _NOWHERE if is_webui else _PATTERNS:
        if found := pattern.search(text):
            told.setdefault(why, found[0])
    if not is_webui and not text.isupper() and (found := _JOINED.search(text)):
        told[_JOINED_WHY] = found[0]
    yield from told.items()


def _of_lines(lines: Sequence[str], made: ModelConfig, *, is_webui: bool) -> list[str]:
    """The same for a prompt file: each reason once, with its lines."""
    places: dict[str, list[int]] = {}
    said: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        for key, what in (*_of_line(line), *_of_text(line, made, is_webui=is_webui)):
            places.setdefault(key, []).append(number)
            said.setdefault(key, what)
    return [Message("from_file: {lines}: {problem}", _lines(numbers), said[key]) for key, numbers in places.items()]


def _of_line(line: str) -> Iterator[tuple[str, str]]:
    if not line.strip():
        yield "empty", Message("empty, and used as a prompt like the others")
    elif line.lstrip().startswith(("#", "//")):
        yield (
            "comment",
            Message("{text} is used as a prompt: comments need from_file_syntax: options", _quoted(line.strip())),
        )


def _lines(numbers: list[int]) -> str:
    more = Message(" and {count} more", len(numbers) - 1) if len(numbers) > 1 else ""
    return Message("line {line}{more}", numbers[0], more)


def _too_long(count: int, rest: str) -> str:
    number = Message("1 token") if count == 1 else Message("{count} tokens", count)
    template = "{number} from {text} on have no effect: the text encoder reads {most}"
    return Message(template, number, _quoted(rest), tokens.READ)


def _quoted(text: str) -> str:
    return f'"{plain(text)}"'
