"""The models of a root as files: list them with their conversions, and import new ones.

It reads no weights and needs no torch.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sdbatch.errors import JobError
from sdbatch.messages import Message
from sdbatch.storage import files
from sdbatch.storage.fingerprint import known_fingerprint
from sdbatch.storage.root import WEIGHTS, Root
from sdbatch.storage.spelling import as_stored

MOST_DEPTH = 12
CHUNK = 1 << 22  # bytes copied at once
FOLDER_MARK = "model_index.json"  # in every folder in diffusers format

Told = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True)
class CatalogEntry:
    """A model that jobs can name.

    Attributes:
        name: the `ckpt` of a job.
        path: from the root if it is inside.
        kind: "file" or "folder"; "missing" if the configuration names a file that does not exist.
        size: bytes.
        sha256: if it is known already, because reading a checkpoint takes long.
        converted: the precisions of its conversions in state/models/.
    """

    name: str
    path: str
    kind: str
    size: int
    sha256: str | None
    converted: list[str]


def list_models(root: Root) -> list[CatalogEntry]:
    """The named models of the configuration, then those in models/."""
    named = [_entry_of(root, name, _named_path(root, model.ckpt)) for name, model in root.named]
    return named + [_entry_of(root, path.relative_to(root.models).as_posix(), path) for path in _models(root.models)]


def _named_path(root: Root, ckpt: str) -> Path:
    """Found as `Root.find_weights` does."""
    places = [as_stored(base / ckpt) for base in (root.path, root.models)]
    return next((path for path in places if path.exists()), places[0])


def _models(folder: Path, depth: int = MOST_DEPTH) -> Iterator[Path]:
    """Weight files and folders in diffusers format; links are followed."""
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return
    for path in entries:
        if path.is_dir():
            if (path / FOLDER_MARK).exists() or (path / "unet").is_dir():
                yield path
            elif depth:
                yield from _models(path, depth - 1)
        elif path.suffix.lower() in WEIGHTS and path.is_file():
            yield path


def _entry_of(root: Root, name: str, path: Path) -> CatalogEntry:
    if not path.exists():
        return CatalogEntry(name, root.show(path), "missing", 0, None, [])
    sha256 = known_fingerprint(path, root.state / "checksums.json")
    # Without drafts of killed conversions.
    kept = (root.state / "models" / sha256).glob("[!.]*.safetensors") if sha256 else ()
    precisions = sorted({conversion.stem.rpartition("-")[2] for conversion in kept})
    return CatalogEntry(name, root.show(path), "folder" if path.is_dir() else "file", size_of(path), sha256, precisions)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(part.stat().st_size for part in _files(path))


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return [part for part in files.below(path) if part.is_file() and not part.name.startswith(".")]
    return [path]


def import_model(source: Path, root: Root, name: str, told: Told, *, link: bool = False) -> Path:
    """Copy a checkpoint or folder into models/ and check the copy before it gets its name; or make a link.

    Raises:
        JobError: there is no such file, or the name is taken.
        OSError: the disk failed or is full, or the copy differs.
    """
    target = root.models / (name or source.name)
    if not source.exists():
        raise JobError("there is no {source}", source)
    if os.path.lexists(target):
        raise JobError("{target} exists already; give the new one another name with --as", root.show(target))
    root.require(root.models)
    if link:
        files.link_to(source.resolve(), target)
        return target
    total, usage = size_of(source), shutil.disk_usage(root.models)
    if total > usage.free:
        text = Message(
            "{total} GB would be copied, and {free} GB are free (--link copies nothing)",
            f"{total / 1e9:,.1f}",
            f"{usage.free / 1e9:,.1f}",
        )
        raise OSError(errno.ENOSPC, text, str(root.models))
    draft = files.draft_of(target)
    try:
        _copy(source, draft, lambda done: told(done, total))
        files.move(draft, target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True) if draft.is_dir() else draft.unlink(missing_ok=True)
        raise
    return target


def _copy(source: Path, draft: Path, told: Callable[[int], None]) -> None:
    done = 0
    for part in _files(source):
        place = draft / part.relative_to(source) if source.is_dir() else draft
        files.make_dir(place.parent)
        digest = hashlib.sha256()
        with part.open("rb") as reading, files.drafted(place, durable=True) as writing:
            while chunk := reading.read(CHUNK):
                digest.update(chunk)
                writing.write(chunk)
                done += len(chunk)
                told(done)
            files.to_disk(writing)
        if files.sha256(place) != digest.hexdigest():
            raise OSError(errno.EIO, Message("the disk returned other data than was written"), str(place))
