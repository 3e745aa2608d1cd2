"""Marks images as favourites and with tags: in the files of storage/marks.py first, then in the index."""

from collections.abc import Callable, Iterable
from itertools import groupby

from sdbatch.errors import JobError
from sdbatch.history.history import History
from sdbatch.history.records import PictureRecord
from sdbatch.storage import marks
from sdbatch.storage.files import is_disk_trouble
from sdbatch.storage.marks import Mark


def favourite(history: History, pictures: Iterable[PictureRecord], *, is_one: bool = True) -> int:
    """Make images favourites, or no longer; returns how many images that are."""
    return _change(history, pictures, lambda mark: Mark(is_one, mark.tags))


def tag(
    history: History, pictures: Iterable[PictureRecord], add: Iterable[str] = (), remove: Iterable[str] = ()
) -> int:
    """Give images tags, and take others away; returns how many images that are.

    Raises:
        JobError: one is no tag, or an image would have too many.
    """
    more, fewer = ([marks.tag_of(text) for text in texts] for texts in (add, remove))
    return _change(history, pictures, lambda mark: marks.with_tags(mark, more, fewer))


def _change(history: History, pictures: Iterable[PictureRecord], changed: Callable[[Mark], Mark]) -> int:
    """Folder by folder. The index may be another's, or locked: then its next look at the folders takes it in."""
    chosen = sorted({picture.path: picture for picture in pictures if picture.file}.values(), key=_folder)
    for folder, some in groupby(chosen, key=_folder):
        place = history.root.path / folder
        _mark(history, some, folder, changed)
        try:
            history.take_marks(place)
        except OSError as error:
            history.stale = str(error.strerror)
    return len(chosen)


def _mark(history: History, some: Iterable[PictureRecord], folder: str, changed: Callable[[Mark], Mark]) -> None:
    names = [picture.file for picture in some]
    try:
        marks.change(history.root, history.root.path / folder, names, changed)
    except FileNotFoundError as error:
        raise JobError("{path}: there is no such picture (any more)", f"{folder}/{names[0]}") from error
    except OSError as error:
        if is_disk_trouble(error):
            raise
        template = "{folder}: its images can be marked only by the account of the service: {problem}"
        raise JobError(template, folder, error.strerror) from error


def _folder(picture: PictureRecord) -> str:
    return picture.folder
