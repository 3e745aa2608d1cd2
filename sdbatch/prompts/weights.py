"""The weights that prompts name: LoRAs as <lora:name:0.8>, embeddings by their bare names. Where each of them lies."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from sdbatch.errors import JobError, printable
from sdbatch.job.messages import likely
from sdbatch.job.parameters import AnyJob
from sdbatch.messages import Message
from sdbatch.prompts.syntax import Network, without_networks
from sdbatch.storage import files
from sdbatch.storage.root import BUNDLED, LORA_CONFIG, WEIGHTS, Root

EMBEDDINGS = "embeddings"  # folder in models/
MOST = 20_000  # files looked at
STRONGEST = 10  # of a LoRA
MOST_WORDS, ALIKE = 200, 2  # that are looked at for slips; letters at the start of which none is
MOST_HEADER = (
    8 << 20
)  # bytes of a safetensors file's header; kohya's scripts write all words that they trained on there
_WORD = re.compile(r"(embedding:)?([\w-]{4,60})")


class Worn(NamedTuple):
    """A LoRA's file or folder, and its weight."""

    path: Path
    weight: float


class PromptWeights(NamedTuple):
    """What a job's prompts name, and what is to be said of it. Embeddings go by name."""

    loras: tuple[Worn, ...] = ()
    embeddings: Mapping[str, Path] = {}
    notes: tuple[str, ...] = ()


class Stock:
    """The LoRAs and embeddings of a root, looked through once for all cells of a job."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self._bundled: dict[tuple[Path, ...], dict[str, Path]] = {}

    def bundled(self, loras: Sequence[Path]) -> dict[str, Path]:
        """Embeddings that these LoRAs bring along."""
        key = tuple(loras)
        if key not in self._bundled:
            self._bundled[key] = _bundled(loras)
        return self._bundled[key]

    @cached_property
    def loras(self) -> dict[str, Path]:
        """LoRAs by name."""
        return by_name(*self.root.lora_places)

    @cached_property
    def embeddings(self) -> dict[str, Path]:
        """Embeddings by name, but for those that LoRAs bring along."""
        return by_name(self.root.models / EMBEDDINGS, *self.root.embedding_folders)


def find_prompt_weights(
    job: AnyJob, lines: Sequence[str] | None, root: Root, stock: Stock | None = None, *, with_notes: bool = True
) -> PromptWeights:
    """What the prompts of a job with `prompt_syntax: webui` name, as far as it lies there.

    Without `with_notes` misspelt names are not looked for, which takes a hundred times as long.

    Raises:
        JobError: a LoRA is not there, or something is asked of it that can't be done.
    """
    if job.prompt_syntax != "webui":
        return PromptWeights()
    field, prompts = ("prompt", [job.prompt]) if lines is None else ("from_file", [*lines])
    stock = stock or Stock(root)
    loras, notes = _loras(field, prompts, stock)
    worn = [*(root.find_model("loras", lora.file) for lora in job.loras), *(lora.path for lora in loras)]
    known = {**stock.embeddings, **stock.bundled(worn)}
    texts = [without_networks(text)[0] for text in dict.fromkeys(prompts)] + [job.negative_prompt]
    run_together = "\n".join(map(_run_together, texts))
    named = {name: path for name, path in known.items() if _run_together(name) in run_together}
    if with_notes:
        notes += _misspelt(texts, known, named)
    return PromptWeights(loras, named, tuple(notes))


@lru_cache(maxsize=MOST)
def _run_together(text: str) -> str:
    return re.sub(r"\s+", "", text).casefold()


def _loras(field: str, prompts: Sequence[str], stock: Stock) -> tuple[tuple[Worn, ...], list[str]]:
    """What stands in <lora:...>: a job wears the same LoRAs in all its pictures."""
    asked = {text: without_networks(text)[1] for text in dict.fromkeys(prompts)}
    first = next(iter(asked.values()), [])
    for number, text in enumerate(prompts, 1):
        if asked[text] != first:
            template = (
                "{field}: line {number} names other LoRAs than line 1; all images of a job have the same LoRAs: name "
                "them on each line, or make several jobs"
            )
            raise JobError(template, field, number)
    notes: list[str] = [
        Message("{field}: {text} is left out: it is unknown here", field, _shown(network))
        for network in first
        if network.kind not in ("lora", "lyco", "hypernet")
    ]
    named = [_wanted(field, network) for network in first if network.kind in ("lora", "lyco", "hypernet")]
    known = stock.loras if named else {}
    return tuple(Worn(_found(field, name, known), weight) for name, weight in named), notes


def _wanted(field: str, network: Network) -> tuple[str, float]:
    """A LoRA's name and weight. One weight may be told for the text encoder and another for the UNet: not here."""
    shown = _shown(network)
    if network.kind == "hypernet":
        raise JobError("{field}: {text}: hypernetworks are not supported; delete it", field, shown)
    name, *others = (argument.strip() for argument in network.arguments)
    given = [part.partition("=") for part in others]
    if strange := [key for key, sign, _ in given if sign and key not in ("te", "unet")]:
        part = "{field}: {text}: {name}= is not supported, only one weight for the whole LoRA"
        raise JobError(part, field, shown, printable(strange[0][:60]))
    weights = {_number(value if sign else key) for key, sign, value in given} or {1.0}
    if len(weights) > 1:
        raise JobError(
            "{field}: {text}: a LoRA has one weight here, for the text encoder and all blocks of the UNet", field, shown
        )
    (weight,) = weights
    if weight is None or abs(weight) > STRONGEST:
        wrong = "{field}: {text}: the weight must be a number from {low} to {high}, as in <lora:pencil:0.8>"
        raise JobError(wrong, field, shown, -STRONGEST, STRONGEST)
    return name, weight


def _shown(network: Network) -> str:
    return printable(f"<{network.kind}:{':'.join(network.arguments)[:100]}>")


def _number(text: str) -> float | None:
    with suppress(ValueError):
        return float(text)
    return None


def _found(field: str, name: str, known: Mapping[str, Path]) -> Path:
    if name in known:
        return known[name]
    hint = likely(name, known)
    instead = Message("did you mean {name}?", printable(hint)) if hint else Message("copy its file or a link there")
    missing = '{field}: there is no LoRA "{name}" (searched in models/loras/); {hint}'
    raise JobError(missing, field, printable(name[:60]), instead)


def by_name(*folders: Path) -> dict[str, Path]:
    """Files of weights below folders, by their names without suffix; a folder that is a LoRA by its own."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in islice(files.below(folder), MOST) if folder.is_dir() else ():
            if path.name == LORA_CONFIG:
                found.setdefault(path.parent.name, path.parent)
            elif path.suffix.lower() in WEIGHTS:
                found.setdefault(path.stem, path)
    return found


def _bundled(loras: Iterable[Path]) -> dict[str, Path]:
    """The embeddings in LoRAs, which go before those of the same name elsewhere, as in stable-diffusion-webui."""
    keys = ((key, path) for path in loras for key in header_of(path) if key.startswith(BUNDLED))
    return {key.removeprefix(BUNDLED).partition(".")[0]: path for key, path in keys}


def header_of(path: Path) -> dict[str, dict[str, Any]]:
    """What a safetensors file says of its tensors, by their names; nothing of any other file."""
    if path.suffix.lower() != ".safetensors":
        return {}
    try:
        size = int.from_bytes(files.read_file(path, 8), "little")
        header = json.loads(files.read_file(path, 8 + min(size, MOST_HEADER))[8:])
        return {name: about for name, about in header.items() if name != "__metadata__" and isinstance(about, dict)}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _misspelt(texts: Iterable[str], known: Mapping[str, Path], named: Mapping[str, Path]) -> Iterator[str]:
    """Words that are meant as embeddings, or likely so."""
    words = {word: mark for text in texts for mark, word in _WORD.findall(text)}
    for word, mark in islice(words.items(), MOST_WORDS):
        near = [name for name in known if name.casefold().startswith(word.casefold()[:ALIKE])]
        hint = likely(word, near)
        if word.casefold() not in {name.casefold() for name in named} and (mark or hint):
            text = 'prompt: "{word}" is read as words; there is no such embedding in models/embeddings/'
            said = Message(text, word)
            yield said + Message("; did you mean {name}?", printable(hint)) if hint else said
