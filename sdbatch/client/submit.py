"""Submits a job file from anywhere: checks it, and copies it with the files beside it that it names.

A job names its image and prompt file by their path from the job file. To keep this path, both go into a new folder in
the inbox, which appears complete.
"""

import errno
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from sdbatch.client.job_text import with_init_img
from sdbatch.client.named_files import NamedFiles
from sdbatch.client.setting import with_settings
from sdbatch.client.validate import check_data, check_file, submit_file, with_its_settings
from sdbatch.config.settings import Limits
from sdbatch.errors import JobError, Missing
from sdbatch.job import reader
from sdbatch.messages import Message, joined
from sdbatch.prompts import sources
from sdbatch.spool.inbox import make_folder
from sdbatch.spool.order import BULK, URGENT
from sdbatch.spool.spool import slug_of
from sdbatch.storage import files
from sdbatch.storage.file_names import is_job_name
from sdbatch.storage.root import Root

UP = "above"  # names of folders for `..` in a job's paths


class Dropped(NamedTuple):
    """The place of a submitted file in the inbox, and the files that were copied with it, as the job names them."""

    path: Path
    along: list[str]


def submit(path: Path, root: Root, limits: Limits, settings: Sequence[str] = ()) -> Dropped:
    """Submit a job file with the files that it names.

    Raises:
        JobError: one of its jobs would fail, or a named file can't be in the inbox; nothing was submitted.
        OSError: it can't be read, or the disk failed.
    """
    root.require(root.inbox)
    if path.is_dir():
        raise JobError("{name}: is a folder; say what to do with its images: --template JOB", path.name)
    if not settings:
        return _submit(path, path.parent, root, limits)
    with TemporaryDirectory() as folder:
        changed = Path(folder) / path.name
        data = files.read_regular(path, reader.MAX_MANIFEST_BYTES + 1) or b""
        changed.write_bytes(with_settings(data, path.name, settings))
        bad = [
            line
            for line, is_good in check_data(changed.read_bytes(), path.name, path.parent, root, limits)
            if not is_good
        ]
        if is_job_name(path.name) and bad:
            told = [with_its_settings(path, settings, line) for line in bad]
            raise JobError(joined("\n", [*told, Message("{name} was not dropped", path.name)]))
        return _submit(changed, path.parent, root, limits)


def _submit(path: Path, beside: Path, root: Root, limits: Limits) -> Dropped:
    if is_job_name(path.name):  # else `submit_file` says what is wrong
        if bad := [line for line, is_good in check_file(path, root, limits, beside) if not is_good]:
            raise JobError(joined("\n", [*bad, Message("{name} was not dropped", path.name)]))
        data = files.read_regular(path, reader.MAX_MANIFEST_BYTES + 1) or b""
        if along := _beside(data, path.name, beside, root, limits):
            return Dropped(_drop_folder(path, path.name, along, root), sorted(along))
    return Dropped(submit_file(path, root), [])


def submit_images(path: Path, template: Path, root: Root, limits: Limits, settings: Sequence[str] = ()) -> Dropped:
    """Submit a folder of images, or one image, with a job file that says what to do with it.

    Raises:
        JobError: there is no image, or the job would fail; nothing was submitted.
        OSError: it can't be read, or the disk failed.
    """
    root.require(root.inbox)
    if not path.exists():
        raise JobError("{path}: {problem}", path, os.strerror(errno.ENOENT))
    path = path.resolve()
    is_inside = path.is_relative_to(root.path.resolve())
    named = root.show(path) if is_inside else path.name
    name = f"{path.stem or slug_of(template.name)}.yaml".lstrip(".~")
    text = with_settings(with_init_img(template, f"{named}/" if path.is_dir() else named), name, settings)
    if bad := [line for line, is_good in check_data(text, name, path.parent, root, limits) if not is_good]:
        told = [Message("{path}: {line}", template, line) for line in bad]
        raise JobError(joined("\n", [*told, Message("{name} was not dropped", path.name)]))
    along = _beside(text, name, path.parent, root, limits)
    with TemporaryDirectory() as folder:
        job = Path(folder) / name
        job.write_bytes(text)
        return Dropped(_drop_folder(job, name, along, root) if along else submit_file(job, root), sorted(along))


def _beside(data: bytes, name: str, place: Path, root: Root, limits: Limits) -> dict[str, Path]:
    """The named files that would not be found from the inbox, by their names in the job."""
    along: dict[str, Path] = {}
    for parsed in reader.parse(data, name, root.defaults):
        for (field, named), found in _named(parsed, place, root, limits).items():
            if (field, named) not in parsed.kept and not _is_found_from_inbox(field, named, found, root):
                along[named] = found
                _refuse_job_names(field, named)
    return along


def _named(parsed: reader.Parsed, place: Path, root: Root, limits: Limits) -> dict[tuple[str, str], Path]:
    """The files that the cells of a job name, by field and name; those that an earlier job may create are left out."""
    named = NamedFiles(place, root, limits)
    with suppress(Missing):
        cells = sources.cells_of(parsed.template, named)
        inits = dict.fromkeys(cells.value("init_img", number) for number in range(len(cells)))
        for init in filter(None, inits):
            with suppress(Missing):
                named.find("init_img", init)
    return named.found


def _is_found_from_inbox(field: str, named: str, found: Path, root: Root) -> bool:
    try:
        return root.find(field, named, [root.inbox, root.path]).samefile(found)
    except JobError:
        return False


def _refuse_job_names(field: str, named: str) -> None:
    if is_job_name(Path(named).name):
        template = '{field}: "{named}" would be taken for a job in the inbox; give it a name that ends in .txt'
        raise JobError(template, field, named)


def _drop_folder(path: Path, name: str, along: Mapping[str, Path], root: Root) -> Path:
    """Create a folder in the inbox with the job file and its files, in the same places relative to each other."""
    ups = max(Path(named).parts.count("..") for named in along)
    place = Path(*[UP] * ups)
    draft = files.draft_of(root.inbox / secrets.token_hex(8))
    try:
        for named, source in along.items():
            _copy(source, Path(os.path.normpath(draft / place / named)), root)
        _copy(path, draft / place / name, root)
        target = _free_name(root, slug_of(name))
        files.move(draft, target)
    except BaseException:
        files.remove_tree(draft)
        raise
    return target / place / name


def _copy(source: Path, target: Path, root: Root) -> None:
    make_folder(root.inbox, target.parent)
    lies = files.drop(source, target.parent)
    if lies.name != target.name:
        files.move(lies, target)


def _free_name(root: Root, slug: str) -> Path:
    """A new folder name that has no meaning for the service."""
    names = (slug if number == 1 else f"{slug}-{number}" for number in range(1, 10_000))
    taken = {URGENT, BULK, root.uploads.name}
    return next(path for name in names if name not in taken and not (path := root.inbox / name).exists())
