"""Pictures that a visitor sends, to start from: seen to be such, bounded, and laid beside the job in the inbox."""

from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock

from werkzeug.datastructures import FileStorage

from sdbatch import files
from sdbatch.errors import JobError
from sdbatch.root import Root
from sdbatch.settings import Limits
from sdbatch.spool import slug_of

SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp"}
_DECODING = Lock()  # one at a time: a picture may be as large as `limits.init_pixels`


def take(upload: FileStorage, root: Root, limits: Limits) -> str:
    """Lay a picture into the inbox; returns its name there. The same one sent again is the same file.

    Raises:
        JobError: it is no picture that a job could start from, or too large.
    """
    from sdbatch.engine.pictures import load_init  # noqa: PLC0415 - numpy and Pillow, for those who send pictures alone

    with TemporaryDirectory(prefix="upload-", dir=root.state) as scratch:
        draft = Path(scratch) / "upload"
        upload.save(draft)
        if (size := draft.stat().st_size) > limits.input_bytes:
            raise JobError(f"init_img: the picture has {size:,} bytes; the limit is {limits.input_bytes:,}")
        with _DECODING:
            load_init(draft, limits.init_pixels, limits.pixels)
        suffix = SUFFIXES.get(upload.mimetype, ".png")
        name = f"{slug_of(upload.filename or '')}-{files.sha256(draft)[:12]}{suffix}"
        if (root.inbox / name).exists():
            return name
        return files.drop(draft.rename(draft.with_name(name)), root.inbox).name
