"""Controls the service by its folders: pause, cancel, retry, prioritize. Works over a share, without a service too."""

import stat
from datetime import UTC, datetime
from pathlib import Path

from sdbatch.errors import Cancelled, JobError
from sdbatch.messages import Message
from sdbatch.spool import status_reader
from sdbatch.spool.inbox import make_folder, walk
from sdbatch.spool.job_names import file_id, folders, folders_matching, number_of
from sdbatch.spool.order import BUMPED, URGENT, bumped_files, ordered, put_in_order
from sdbatch.spool.spool import CANCEL, Spool
from sdbatch.storage import files
from sdbatch.storage.file_names import is_job_name
from sdbatch.storage.reason import ERROR
from sdbatch.storage.root import Root
from sdbatch.storage.spelling import normal


def pause(root: Root, reason: str = "", *, unload: bool = False) -> str:
    """Pause after the current batch; with `unload` the model is removed from memory too."""
    root.require(root.inbox)
    # The service must be able to read it, whatever the umask of the user.
    files.write_atomically(root.pause, ("unload\n" * unload + reason).encode(), mode=0o664)
    return Message("paused: the pictures in work are finished, then everything waits (`sdbatch resume` goes on)")


def stop(root: Root, reason: str = "", *, unload: bool = False) -> str:
    """Pause, and cancel the jobs that are in work now; `retry` takes them up at the first missing image."""
    pause(root, reason, unload=unload)
    named = {str(job["id"]) for job in status_reader.read_overview(root, datetime.now(UTC))["jobs"]}
    stopped = _mark(root, [folder for folder in folders(root.running) if folder.name in named])
    template = "paused, and {count} jobs are stopped; `sdbatch retry` takes them up at the first missing image"
    return Message(template, len(stopped))


def resume(root: Root, *, now: bool = False) -> str:
    """Continue; with `now` also outside the active hours, until they begin."""
    root.require(root.inbox)
    was_paused = True
    try:
        files.delete(root.pause)
    except FileNotFoundError:
        was_paused = False
    if now:
        files.write_atomically(root.now, b"", mode=0o664)
        return Message("it draws now, and by its hours again from when they begin")
    facts = status_reader.read_status(root)
    if facts.get("state") == status_reader.RESTING:
        return Message("it was not paused; it {state}, and `sdbatch resume --now` starts it now", facts.get("problem"))
    return Message("resumed") if was_paused else Message("it was not paused")


def cancel(root: Root, name: str) -> str:
    """Cancel a job, or a file with all its jobs.

    A waiting file is deleted. A claimed job goes to failed/ with its finished images.
    """
    claimed = folders_matching(name, [root.running])
    is_id = any(folder.name == normal(name) for folder in claimed)
    waiting = _waiting(root, name) if not is_id else []
    if waiting and is_job_name(name):
        claimed = []  # given by its full name
    if len(waiting) + len({file_id(folder.name) for folder in claimed}) > 1:
        raise _ambiguous(name, [*waiting, *claimed])
    if waiting:
        return _delete(root, waiting[0])
    if not claimed:
        raise _unknown(root, name, "jobs/inbox/, jobs/running/")
    cancelled = _mark(root, claimed)
    if len(cancelled) == 1:
        return Message("{name} is cancelled; it goes to jobs/failed/ with its finished images", cancelled[0].name)
    template = "{count} jobs of {file} are cancelled; they go to jobs/failed/ with their finished images"
    return Message(template, len(cancelled), number_of(claimed[0].name))


def cancel_all(root: Root) -> list[str]:
    """Cancel every waiting and running job."""
    root.require(root.inbox)
    return [_delete(root, path) for path in _jobs_in(root.inbox)] + [
        Message("{name} is cancelled", folder.name) for folder in _mark(root, folders(root.running))
    ]


def retry(root: Root, name: str) -> str:
    """Run a failed job again, or all failed jobs of a file. Images stay if nothing they were made from has changed."""
    root.require(root.inbox)
    found = folders_matching(name, [root.failed])
    if len({file_id(folder.name) for folder in found}) != 1:
        raise _ambiguous(name, found) if found else _unknown(root, name, "jobs/failed/")
    for folder in found:
        Spool(root).requeue(folder)
    if len(found) == 1:
        return Message("{name} will run again", found[0].name)
    return Message("{count} jobs of {file} will run again", len(found), number_of(found[0].name))


def retry_all(root: Root) -> list[str]:
    """Retry all failed jobs, except cancelled ones."""
    root.require(root.inbox)
    return [_retried(root, folder) for folder in sorted(root.failed.iterdir()) if _has_failed(folder)]


def _retried(root: Root, folder: Path) -> str:
    """Retry one job; an error with its folder does not stop the others."""
    try:
        return retry(root, folder.name)
    except JobError as error:
        return Message("{name} stays: {problem}", folder.name, error)
    except OSError as error:
        if files.is_disk_trouble(error):
            raise
        return Message("{name} stays: {problem}", folder.name, files.in_words(error))


def prioritize(root: Root, name: str) -> str:
    """Move a waiting file to urgent/. The files that it names are still found at its old place."""
    found = _waiting(root, name)
    if not found and (claimed := folders_matching(name, [root.running])):
        return _prioritize_claimed(root, name, claimed)
    if len(found) != 1:
        raise _ambiguous(name, found) if found else _unknown(root, name, "jobs/inbox/")
    (file,), urgent = found, root.inbox / URGENT
    if file.is_relative_to(urgent):
        return Message("{file} is already in jobs/inbox/{urgent}/, and goes first in its turn", root.show(file), URGENT)
    place = urgent / file.parent.relative_to(root.inbox)
    make_folder(root.inbox, place)
    target = next(t for n in range(1, 10_000) if not (t := place / (f"{n}-" * (n > 1) + file.name)).exists())
    if stat.S_ISREG(file.lstat().st_mode):  # a matching .sha256 beside it means that it need not settle again
        files.write_atomically(Path(f"{target}.sha256"), files.sha256(file).encode(), durable=False, mode=0o664)
    files.move(file, target)
    files.clear(Path(f"{file}.sha256"))
    return Message("{path} goes first, after what was in jobs/inbox/{urgent}/ before", root.show(target), URGENT)


def reorder(root: Root, name: str, before: str = "") -> str:
    """Move a waiting file, or a claimed one with all its jobs, before another of the line; without one behind it.

    Only what stands before its new place is put in order; what waits behind keeps its own.
    """
    queue = status_reader.read_overview(root, datetime.now(UTC))["queue"]
    line = [*dict.fromkeys(str(entry.get("file") or file_id(entry["id"])) for entry in queue["next"])]
    moved, target = _place_in(root, name, line), _place_in(root, before, line) if before else ""
    if target != moved:
        line.remove(moved)
        line.insert(line.index(target) if target else len(line), moved)
    at = line.index(moved)
    before_now = [number for number, each in enumerate(line) if each in ordered(root.running)]
    put_in_order(root.running, line[: max([at, *before_now]) + 1])
    return Message("{name} is number {number} of what waits", name, at + 1)


def _place_in(root: Root, name: str, line: list[str]) -> str:
    """How the line calls what is meant."""
    found = [path.relative_to(root.inbox).as_posix() for path in _waiting(root, name)]
    found = found or [*{file_id(folder.name) for folder in folders_matching(name, [root.running])}]
    if len(found) > 1:
        raise JobError("{name} may be any of {names}; say which", name, ", ".join(sorted(found)[:10]))
    if not found or found[0] not in line:
        raise JobError("{name} is not among the first {count} that wait", name, len(line))
    return found[0]


def _prioritize_claimed(root: Root, name: str, claimed: list[Path]) -> str:
    """All jobs of a file go first, like those in urgent/."""
    wanted = {file_id(folder.name) for folder in claimed}
    if len(wanted) != 1:
        raise _ambiguous(name, claimed)
    there = {file_id(folder.name) for folder in folders(root.running)}
    lines = sorted((bumped_files(root.running) | wanted) & there)
    files.write_atomically(root.running / BUMPED, "\n".join(lines).encode(), mode=0o664)
    return Message("all jobs of {file} go first, after earlier urgent ones", number_of(claimed[0].name))


def _has_failed(folder: Path) -> bool:
    try:
        said = files.read_regular(folder / ERROR, len(Cancelled.TEXT) + 100)
    except OSError:
        return False
    return said is not None and said.decode("utf-8", "replace").strip() != Cancelled.TEXT


def _delete(root: Root, waiting: Path) -> str:
    files.delete(waiting)
    return Message("deleted {path}", root.show(waiting))


def _mark(root: Root, claimed: list[Path]) -> list[Path]:
    """Mark claimed jobs as cancelled, and all parts of the file if it is split meanwhile."""
    wanted = claimed
    while True:
        for folder in wanted:
            files.mark(folder / CANCEL)
        files_of = {file_id(folder.name) for folder in claimed if len(claimed) > 1}
        there = [folder for folder in folders(root.running) if file_id(folder.name) in files_of]
        wanted = [folder for folder in there if folder not in claimed]
        if not wanted:
            return claimed
        claimed = [*claimed, *wanted]


def _waiting(root: Root, name: str) -> list[Path]:
    """Files in the inbox with this name or path."""
    root.require(root.inbox)
    name, jobs = normal(name), _jobs_in(root.inbox)
    exact = [path for path in jobs if normal(path.relative_to(root.inbox).as_posix()) == name]
    return exact or [path for path in jobs if name in (normal(path.name), normal(path.stem))]


def _jobs_in(inbox: Path) -> list[Path]:
    found = (Path(entry.path) for entry in walk(inbox, {}) if is_job_name(entry.name))
    return [path for path in found if not path.is_dir()]


def _ambiguous(name: str, found: list[Path]) -> JobError:
    return JobError("{name} may be any of {names}; say which", name, ", ".join(path.name for path in found[:10]))


def _unknown(root: Root, name: str, places: str) -> JobError:
    template = 'there is no job "{name}" in {places} (see `sdbatch status --root {root}`)'
    return JobError(template, name, places, root.path)
