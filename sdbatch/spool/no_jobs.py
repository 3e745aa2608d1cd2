"""Files in the inbox that are no jobs: why they are ignored, and what to do.

Only the name decides, except for text files: they may be notes, prompts, or a job that an editor named .txt, so their
beginning is read. Files that jobs name are not reported (images, texts, digests), nor are hidden and temporary ones.
"""

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from heapq import nsmallest
from pathlib import Path
from typing import Any, NamedTuple

from sdbatch.messages import Message
from sdbatch.storage import files
from sdbatch.storage.file_names import NOBODYS_PREFIXES, PARTIAL_SUFFIXES, SUFFIXES, is_job_name, natural_key

TOLD = 20  # by name; the others are counted
PARTIAL_SECONDS = 600.0  # after which a copy that does not grow counts as abandoned
GLANCE_BYTES = 4 << 10
RENAME = "the name of a job file ends in .yaml, .yml or .json: rename it to {name}"
READS_LIKE_ONE = "its content is a job, but its name does not end like one: rename it to {name}"
GIVEN_UP = Message("a copy that did not come to its end: copy it again")
OTHER = Message("its name is no job's, which ends in .yaml, .yml or .json; if a job names it, it is well here")

_KINDS = {
    Message("an archive is not looked into: unpack it here"): "7z bz2 cab gz lz4 rar tar tbz tgz txz xz zip zst",
    Message("jobs are plain text: save what it says in a text file whose name ends in .yaml"): (
        "doc docx htm html key numbers odp ods odt pages pdf ppt pptx rtf xls xlsx"
    ),
    Message(
        "weights belong in models/, where jobs find them: move it there"
    ): "bin ckpt gguf h5 onnx pkl pt pth safetensors",
    Message("only a shortcut: copy the file itself"): "desktop lnk url webloc",
    "": (  # files that jobs name, digests, and files of desktops
        "avif bmp gif heic jfif jpe jpeg jpg pbm pgm png ppm psd svg tif tiff webp asc md5 sha1 sha256 sha512 sig db"
    ),
}
_BY_SUFFIX = {suffix: text for text, suffixes in _KINDS.items() for suffix in suffixes.split()}
_TEXTS = {"", "list", "log", "markdown", "md", "prompt", "prompts", "rst", "text", "txt"}
_TABLES = {"csv", "tsv", "jsonl", "ndjson"}  # of prompts: in a folder a job brought them along
_NOBODYS = re.compile(r"desktop\.ini|icon\r|.*:zone\.identifier|.*~|.*\.sw[a-z]", re.IGNORECASE)
_WITHIN = re.compile(r"(.+)(\.(?:ya?ml|json))(?![a-z0-9])(.*)", re.IGNORECASE)  # truck.yaml.txt
_WITHOUT_DOT = re.compile(r"([^.]+?)[\W_]?(ya?ml|json)", re.IGNORECASE)  # truck,yaml
_IGNORED = re.compile(rb"(?:[ \t]*(?:#.*|---[ \t]*)?\r?\n)*")
_FIELD = re.compile(rb"""[\s{\[-]*["']?[\w-]+["']?[ \t]*:""")
_PROMPT = re.compile(rb"""^[\s{\[,-]*["']?(?:prompt|from[_-]file|init[_-]img)["']?[ \t]*:""", re.MULTILINE)


class NoJob(NamedTuple):
    """A file, why it is ignored, and whether it was probably meant as a job."""

    name: str
    why: str
    is_meant: bool = False


def judge(name: str, rest: float = 0.0, reads_like_job: Callable[[], bool] = lambda: False) -> NoJob | None:
    """The note about a file that is no job and has not changed for `rest` seconds; None if there is none."""
    file = name.rpartition("/")[2]
    stem, dot, suffix = file.rpartition(".")
    stem, suffix = (stem, suffix.lower()) if dot else (file, "")
    is_brought_along = "/" in name and suffix in _TABLES
    if is_job_name(file) or file.startswith(NOBODYS_PREFIXES) or _NOBODYS.fullmatch(file) or is_brought_along:
        return None
    if file.lower().endswith(PARTIAL_SUFFIXES):
        return NoJob(name, GIVEN_UP, is_meant=True) if rest >= PARTIAL_SECONDS else None
    if suffix in _BY_SUFFIX:
        return NoJob(name, _BY_SUFFIX[suffix]) if _BY_SUFFIX[suffix] else None
    if meant := _meant(file, stem, suffix):
        return NoJob(name, Message(RENAME, meant), is_meant=True)
    if suffix not in _TEXTS:
        return NoJob(name, OTHER)
    return NoJob(name, Message(READS_LIKE_ONE, f"{stem}.yaml"), is_meant=True) if reads_like_job() else None


def reads_like_job(path: str) -> bool:
    """Whether a text starts like a job: with a field, and soon a prompt."""
    try:
        head = files.read_regular(Path(path), GLANCE_BYTES) or b""
    except OSError:
        return False
    head = head.replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe")  # of UTF-16, as some editors save it
    ignored = _IGNORED.match(head)
    return bool(_FIELD.match(head, ignored.end() if ignored else 0) and _PROMPT.search(head))


def told(found: Iterable[NoJob]) -> dict[str, Any]:
    """For status.json: the number of files, and the first of them; those probably meant as jobs come first."""
    listed = [*found]
    first = nsmallest(TOLD, listed, key=lambda one: (not one.is_meant, natural_key(one.name)))
    return {"count": len(listed), "files": {one.name: one.why for one in first}}


def _meant(file: str, stem: str, suffix: str) -> str:
    """The correct job name that this name resembles; empty if there is none."""
    if found := _WITHIN.fullmatch(file):
        base, right, behind = found.groups()
        is_suffix = re.fullmatch(r"\.[a-z]\w{0,9}", behind, re.IGNORECASE)
        behind = "" if is_suffix else "".join(filter(str.isprintable, behind)).rstrip(" .")
        return base + behind + right
    if not suffix:
        found = _WITHOUT_DOT.fullmatch(file)
        return f"{found[1]}.{found[2].lower()}" if found else ""
    known = [right.removeprefix(".") for right in SUFFIXES]
    likely = [right for right in known if sorted(right) == sorted(suffix)] or get_close_matches(suffix, known, 1, 0.7)
    return f"{stem}.{likely[0]}" if likely else ""
