"""Uploaded images: checked, limited in size, and put into a folder of the inbox.

A job names its image by the full path, so that it may be moved itself, as `prioritize` does. Images that no job waits
for are deleted.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock

from werkzeug.datastructures import FileStorage

from sdbatch.config.settings import Limits, Settings
from sdbatch.errors import JobError
from sdbatch.spool.inbox import make_folder
from sdbatch.spool.spool import slug_of
from sdbatch.storage import files
from sdbatch.storage.file_names import SENT
from sdbatch.storage.root import Root

SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp"}
MOST_WAITING = 100  # times the largest that one may be
_TAKING = Lock()  # one at a time: it checks the free space, and decodes a whole image


def take(upload: FileStorage, root: Root, settings: Settings) -> str:
    """Save an image in jobs/inbox/uploads/; returns its path from the root.

    Raises:
        JobError: it is no usable image, too large, or there is no space for it.
    """
    size = upload.stream.seek(0, os.SEEK_END)
    upload.stream.seek(0)
    if size > (most := settings.limits.input_bytes):
        raise JobError("init_img: the image has {size:,} bytes; the limit is {most:,}", size, most)
    with _TAKING:
        make_folder(root.inbox, root.uploads)
        _check_room(root, settings, size)
        return _taken(upload, root, settings.limits)


@contextmanager
def taken(upload: FileStorage, root: Root, settings: Settings) -> Iterator[Path]:
    """An image as a file for the length of the block, to read what it says of itself; it is not decoded.

    Raises:
        JobError: it is too large.
    """
    size = upload.stream.seek(0, os.SEEK_END)
    upload.stream.seek(0)
    if size > (most := settings.limits.input_bytes):
        raise JobError("init_img: the image has {size:,} bytes; the limit is {most:,}", size, most)
    with TemporaryDirectory(prefix="upload-", dir=root.state) as scratch:
        upload.save(draft := Path(scratch) / "upload.png")
        yield draft


def _taken(upload: FileStorage, root: Root, limits: Limits) -> str:
    from sdbatch.imaging.pictures import load_init  # noqa: PLC0415 - numpy and Pillow, for those who send pictures alone

    with TemporaryDirectory(prefix="upload-", dir=root.state) as scratch:
        draft = Path(scratch) / "upload"
        upload.save(draft)
        load_init(draft, limits.init_pixels, limits.pixels)
        mark = files.sha256(draft)[:12]  # retention recognizes it by this and by SENT
        name = f"{SENT}{slug_of(upload.filename or '')}-{mark}{SUFFIXES.get(upload.mimetype, '.png')}"
        return root.show(files.drop(draft.rename(draft.with_name(name)), root.uploads))


def _check_room(root: Root, settings: Settings, size: int) -> None:
    waiting = sum(_size(path) for path in root.uploads.iterdir())
    if waiting + size > (most := MOST_WAITING * settings.limits.input_bytes):
        raise JobError("init_img: all waiting images in jobs/inbox/uploads/ together may have {most:,} bytes", most)
    usage = shutil.disk_usage(root.uploads)
    if usage.free - size < settings.bytes_kept_free(usage.total):
        raise JobError("init_img: the disk is nearly full ({free:,} bytes are left)", usage.free)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:  # swept since it was listed
        return 0
