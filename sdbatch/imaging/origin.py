"""How an image was generated, from its texts: our own, or another program's as fields of a job.

`python -m sdbatch.imaging.origin` answers for one path per line until its standard input ends, with a line of JSON
each. So a malicious image costs the time of a separate process, which can be killed (see reader_process.py).
"""

import json
import resource
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sdbatch.errors import printable
from sdbatch.imaging import infotext, other_programs, png_text
from sdbatch.messages import Message

MEMORY = 2 << 30  # bytes: the limit for one image
COMMENTS = ("UserComment", "ImageDescription")  # of EXIF
UNREADABLE = Message("made by a program whose text in the image can't be read here")
ELSEWHERE = Message("drawn by another program: the same seed need not give the same picture")


@dataclass(frozen=True)
class PictureInfo:
    """What the texts of an image say.

    Attributes:
        fields: of a job; empty if nothing was understood.
        notes: settings that can't be used.
        model, vae: the checkpoint and the autoencoder as another program names them.
        strength: of another program's img2img, whose init image is unknown.
        is_own: whether we wrote it.
        program: the other program, if known.
        unread: keywords of texts that are not understood.
        comment: the comment or description in its EXIF, as it stands.
    """

    width: int
    height: int
    fields: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    model: str = ""
    vae: str = ""
    strength: float | None = None
    is_own: bool = False
    unread: list[str] = field(default_factory=list)
    program: str = ""
    comment: str = ""


def read(path: Path) -> PictureInfo | None:
    """What an image says; None if it is no readable PNG, JPEG or WebP."""
    written = png_text.read(path)
    if written is None:
        return None
    comment = next((text for key in COMMENTS if (text := written.texts.get(key, "").strip())), "")
    return replace(_told(written), comment=comment)


def _told(written: png_text.Written) -> PictureInfo:
    size = written.width, written.height
    job = own_text(written).get("job")
    if isinstance(job, dict):  # with from_file, only the other text contains this image's prompt
        own = _own_prompt(job, written.texts.get("parameters", "")) if job.get("from_file") else ""
        return PictureInfo(*size, job | ({"prompt": own} if own else {}), is_own=True, program="sdbatch")
    told = other_programs.read(written.texts)
    if told is None:
        return PictureInfo(*size, unread=[*written.texts, *written.unread])
    fields, notes = infotext.to_fields(told)
    if not told.is_img2img and not {"W", "H"} <= fields.keys():
        notes.append(Message("Size: not given; the image has {width}x{height}", size[0], size[1]))
    version = told.settings.get("Version", "")
    if not version.startswith("sdbatch") and (told.program or notes):  # a web UI's picture is drawn as there
        notes.append(ELSEWHERE)
    strength = _number(told.settings["Denoising strength"]) if told.is_img2img else None
    program = " ".join(filter(None, (told.program, version[:80]))) or "a web UI"
    model, vae = (told.settings.get(key, "")[:1000] for key in ("Model", "VAE"))
    vae = "" if vae in ("None", "Automatic") else vae
    return PictureInfo(*size, fields, notes, model, vae, strength, program=program)


def _own_prompt(job: dict[str, Any], parameters: str) -> str:
    """The line of a prompt file that an image of ours was made from."""
    listed = job.get("loras")
    loras = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    named = [(str(each.get("file")), w) for each in loras if isinstance(w := each.get("weight"), int | float)]
    return infotext.parse(parameters).prompt.removesuffix(infotext.lora_words(named))


def own_text(written: png_text.Written) -> dict[str, Any]:
    """Our own text in an image; None if it is not ours."""
    try:
        exact = json.loads(written.texts.get("sdbatch", "{}"))
    except (ValueError, RecursionError):
        return {}
    return exact if isinstance(exact, dict) else {}


def why_unknown(said: PictureInfo) -> str:
    """Why the texts of an image say nothing, in words."""
    if not said.unread:
        return Message("no text in the image")
    return f"{UNREADABLE} ({printable(', '.join(each[:80] for each in said.unread))})"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def main() -> None:
    """Answer until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        said = read(Path(json.loads(line)))
        print(json.dumps(said and asdict(said)), flush=True)  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
