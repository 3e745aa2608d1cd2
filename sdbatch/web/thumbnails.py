"""Files that the page may show: images and records in outputs/ and jobs/; and their thumbnails.

Prompt files are not shown: they may come from a folder of the admin.
"""

import hashlib
import os
import re
import stat
import warnings
from io import BufferedReader, BytesIO
from pathlib import Path
from threading import BoundedSemaphore

from sdbatch.errors import JobError
from sdbatch.imaging.strip_metadata import strip_metadata
from sdbatch.spool import attempts
from sdbatch.spool.attempts import ATTEMPT
from sdbatch.storage import files
from sdbatch.storage.root import SAMPLES, Root
from sdbatch.storage.safe_open import open_beneath

PICTURES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
# Handed out as text to be saved, never shown: what lies directly in a done job's folder, and setup.json in outputs/.
RECORDS = (".yaml", ".yml", ".json", ".jsonl")
SETUP = re.compile(r"setup(-\d+)?\.json")
MOVES = 3  # of a picture: to another attempt, out of it, and with its job
SIDE = 320  # pixels: twice what a phone shows
MOST_IN_BUCKET = 200  # of 256 buckets: some 50,000 thumbnails, under a gigabyte
_DRAWING = BoundedSemaphore(2)  # pictures are decoded whole


def opened(root: Root, path: str) -> BufferedReader:
    """Open a file by its path from the root; no link can lead out of its folder.

    Raises:
        FileNotFoundError: there is none, or it may not be shown.
    """
    place, below = _place(root, path)
    try:
        handle = open_beneath(place, below)
    except OSError as error:
        if files.is_disk_trouble(error):
            raise
        raise FileNotFoundError(path) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise FileNotFoundError(path)
    return os.fdopen(handle, "rb")


def _place(root: Root, path: str) -> tuple[Path, str]:
    """The folder of a path that may be shown, and the rest of the path. Everything else is refused."""
    parts = path.split("/")
    if {"", ".", ".."} & {*parts} or "\0" in path:
        raise FileNotFoundError(path)
    match parts:
        case ["outputs", *below] if _is_picture(path) or SETUP.fullmatch(below[-1]):
            return root.outputs, "/".join(below)
        case ["jobs", "done", _, inner, name] if inner.lower() == "inputs" and not name.startswith("init_img"):
            pass
        case ["jobs", "done", *below] if _is_picture(path):
            return root.done, "/".join(below)
        case ["jobs", "done", job, name] if name.lower().endswith(RECORDS):
            return root.done, f"{job}/{name}"
        case ["jobs", "running" | "failed" as place, _, *attempt, "samples", name] if name.endswith(".png") and all(
            part.startswith(ATTEMPT) for part in attempt
        ):
            return getattr(root, place), "/".join(parts[2:])
        case ["jobs", "running", _, attempt, "preview.png"] if attempt.startswith(ATTEMPT):
            return root.running, "/".join(parts[2:])
        case ["jobs", "failed", _, "inputs", name] if name.startswith("init_img.") and _is_picture(name):
            return root.failed, "/".join(parts[2:])
    raise FileNotFoundError(path)


def path_of_drawn(root: Root, job: str, name: str) -> str:
    """Where a picture of a job lies now: it is moved when its attempt ends, and when its job does.

    Raises:
        FileNotFoundError: it lies nowhere.
    """
    if {job, name} & {"", ".", ".."} or "/" in job + name or "\0" in job + name:
        raise FileNotFoundError(name)
    for _ in range(MOVES + 1):  # it may be moved on while it is looked for
        ended = (place / job / SAMPLES / name for place in (root.done, root.failed))
        for path in filter(None, (attempts.staged(root.running / job).get(name), *ended)):
            if path.is_file():
                return path.relative_to(root.path).as_posix()
    raise FileNotFoundError(name)


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in PICTURES


def thumbnail(root: Root, path: str, most_pixels: int) -> Path | BytesIO:
    """A small JPEG of an image, made on first use and kept in state/thumbnails/ if possible.

    Raises:
        FileNotFoundError: there is no such picture.
        JobError: it can't be read, or has more than `most_pixels`.
    """
    with opened(root, path) as file:
        status = os.fstat(file.fileno())
        name = hashlib.sha256(f"{path}\0{status.st_mtime_ns}\0{status.st_size}".encode()).hexdigest()
        kept = root.state / "thumbnails" / name[:2] / f"{name}.jpg"
        if not kept.exists():
            with _DRAWING:
                data = _small(file, most_pixels)
            try:
                files.make_dir(kept.parent)
                make_room(kept.parent)
                files.write_atomically(kept, data, durable=False)
            except OSError:  # full, read-only or not ours: then it is made each time
                return BytesIO(data)
    return kept


def _small(file: BufferedReader, most_pixels: int) -> bytes:
    from PIL import Image  # noqa: PLC0415 - where the page is not asked for pictures it starts without

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # bounded below
            with Image.open(strip_metadata(file), formats=("PNG", "JPEG", "WEBP")) as picture:
                if picture.width * picture.height <= most_pixels:
                    picture.draft("RGB", (SIDE, SIDE))
                    small = picture.convert("RGB")
                    small.thumbnail((SIDE, SIDE))
                    small.save(buffer := BytesIO(), "JPEG", quality=80)  # a tenth of the time of WebP
                    return buffer.getvalue()
    except Exception as error:  # with damaged files Pillow may raise anything
        if isinstance(error, OSError) and files.is_disk_trouble(error):
            raise
        raise JobError("the image is damaged") from error
    raise JobError("the image has more than {most:,} pixels", most_pixels)


def make_room(bucket: Path) -> None:
    """Delete the older half if there are many; they are made again when needed."""
    kept = [*bucket.iterdir()]
    if len(kept) > MOST_IN_BUCKET:
        for path in sorted(kept, key=lambda path: path.stat().st_mtime)[: len(kept) // 2]:
            files.clear(path)
