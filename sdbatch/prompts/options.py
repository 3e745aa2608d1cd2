"""The lines of a prompt file with `from_file_syntax: options`: a prompt, and fields of its own.

    --prompt "a cat" --negative_prompt "dog" --steps 20     as stable-diffusion-webui's "Prompts from file or textbox"
    a cat --n dog --w 512 --h 768 --d 1,2 --s 20 --l 7.5    as gen_img.py of kohya-ss/sd-scripts
    # a comment

The names of either, and those of a job's fields, may stand on any line. Only in the first form quotes hold words
together.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sdbatch.errors import JobError, printable
from sdbatch.job.document import NUMBER
from sdbatch.job.parameters import SYNONYMS, Img2Img, Txt2Img
from sdbatch.messages import Message

FIELDS = Txt2Img.model_fields | Img2Img.model_fields
# Our field by the option that both programs read, or the web UI alone, or sd-scripts alone.
NAMES = {
    **SYNONYMS,
    "cfg_scale": "scale",
    "width": "W",
    "height": "H",
    "sampler_name": "sampler",
    "batch_size": "n_samples",
    "subseed": "variation_seed",
    "subseed_strength": "variation_strength",
    "denoising_strength": "strength",
    "sd_model": "ckpt",
    "negative": "negative_prompt",
    "n": "negative_prompt",
    "w": "W",
    "h": "H",
    "d": "seed",
    "s": "ddim_steps",
    "l": "scale",
    "t": "strength",
    "ss": "sampler",
}
# What they do not change an image by; `false` of the last is what happens here.
_IDLE = ("prompt_for_display", "do_not_save_grid", "do_not_save_samples")
_OFF = ("restore_faces", "tiling")
_WHY_NOT = {
    **dict.fromkeys(
        ("outpath_samples", "outpath_grids", "f"), Message("a job has one output folder: set outdir in it")
    ),
    **dict.fromkeys(("ow", "oh", "nw", "nh", "ct", "cl"), Message("this belongs to another kind of model")),
    "nl": Message("there is one scale; use --l"),
    "c": Message("there is one prompt for all parts of the model"),
    "am": Message("LoRAs are named in the prompt, with prompt_syntax: webui"),
    "sampler_index": Message("give the name of the sampler: --sampler_name"),
}
_STARTS = ("dsd", "dst", "dsr", "gl")  # Deep Shrink and Gradual Latent
SHORT = 3  # letters: of a shorter name sd-scripts' meaning counts, in any case
_OPTION = re.compile(r"(?:^|(?<=\s))--(?=[A-Za-z])")
_PIECE = re.compile(r'"((?:[^"\\]|\\.)*)"|\'([^\']*)\'|\\(.)|([^\s"\'\\]+)|(\s+)|(.)', re.DOTALL)
_ESCAPED = re.compile(r'\\(["\\])')
_TEXTS = ("prompt", "negative_prompt")


@dataclass(frozen=True)
class Line:
    """What a line says: its number in the file, from 1, and the fields as they are written."""

    number: int
    fields: Mapping[str, Any]


def read_options(lines: list[str]) -> Iterator[Line]:
    """The lines that are neither empty nor comments; of several seeds each makes a line.

    Raises:
        JobError: a line can't be read; it is named.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            fields = _fields(line.strip())
        except JobError as error:
            raise JobError("line {number}: {problem}", number, error) from error
        seeds = fields.get("seed", "")
        if "," not in seeds:
            yield Line(number, typed(fields))
            continue
        for seed in filter(None, map(str.strip, seeds.split(","))):
            yield Line(number, typed(fields | {"seed": seed}))


def _fields(line: str) -> dict[str, str]:
    if line.startswith("--"):
        said = [*_quoted(line)]
    else:
        prompt, *options = _OPTION.split(line)
        said = [("prompt", prompt.strip()), *(_unquoted(option) for option in options)]
    fields: dict[str, str] = {}
    for option, value in said:
        name = _field(option, value)
        if name in fields:
            raise JobError("{field}: is given twice on this line; remove one", name)
        if name and not value and name not in _TEXTS:
            raise JobError("--{option}: its value is missing", option)
        if name:
            fields[name] = value
    return fields


def _unquoted(option: str) -> tuple[str, str]:
    """The name and the value of an option of sd-scripts: all up to the next."""
    name, value = [*option.split(None, 1), "", ""][:2]
    value = value.strip()
    is_quoted = len(value) > 1 and value[0] == value[-1] == '"'
    return name, value[1:-1] if is_quoted else value


def _quoted(line: str) -> Iterator[tuple[str, str]]:
    """The names and values of the web UI's options, read as a shell does; a prompt may be several words."""
    words = _words(line)
    at = 0
    while at < len(words):
        option, is_bare = words[at]
        if not (is_bare and option.startswith("--")):
            raise JobError(
                '"{text}" stands behind a value; put values of several words in quotes', printable(option[:40])
            )
        at += 1
        end = at
        while end < len(words) and not (words[end][1] and words[end][0].startswith("--")):
            end += 1
            if option[2:] not in _TEXTS:
                break
        yield option[2:], " ".join(word for word, _ in words[at:end])
        at = end


def _words(line: str) -> list[tuple[str, bool]]:
    """The words of a line without their quotes, and whether they have none."""
    words: list[tuple[str, bool]] = []
    parts: list[str] = []
    is_bare = True
    for piece in _PIECE.finditer(line):
        double, single, escaped, bare, blank, rest = piece.groups()
        if rest is not None:
            raise JobError("a quote is not closed; write \\{sign} for the sign itself", rest)
        if blank is not None:
            words.append(("".join(parts), is_bare))
            parts, is_bare = [], True
        elif double is not None:
            parts.append(_ESCAPED.sub(r"\1", double))
            is_bare = False
        elif single is not None:
            parts.append(single)
            is_bare = False
        else:
            parts.append(bare if escaped is None else escaped)
    return [*words, ("".join(parts), is_bare)]


def _field(option: str, value: str) -> str:
    """Our field for an option; empty where it has no effect."""
    name = option.replace("-", "_")
    if len(name) < SHORT or name not in FIELDS:
        name = NAMES.get(name.lower(), name.lower() if len(name) < SHORT else name)
    if name in _IDLE or (name in _OFF and value.lower() == "false"):
        return ""
    if name in _WHY_NOT or (name.startswith(_STARTS) and len(name) <= len("dst1")):
        why = _WHY_NOT.get(name) or Message("there is no Deep Shrink and no Gradual Latent here")
        raise JobError("--{option} {value}: {problem}", printable(option), printable(value[:40]), why)
    return name


def typed(fields: Mapping[str, str]) -> dict[str, Any]:
    """Values of a text file in the types of their fields, as far as they can be; the job's checks refuse the rest."""
    return {name: _typed(FIELDS[name].annotation, text) if name in FIELDS else text for name, text in fields.items()}


def _typed(kind: Any, text: str) -> Any:
    if kind is bool:
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(text.lower(), text)
    if kind in (int, float) and NUMBER.fullmatch(text):
        number = float(text)
        return int(number) if kind is int and number.is_integer() and abs(number) < 1 << 53 else number
    return text
