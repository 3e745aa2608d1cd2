"""The paths of a root, and which paths a job may name."""

import os
import re
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sdbatch.errors import JobError, Missing, NoRoot, TemporarilyUnavailable
from sdbatch.messages import Message, joined
from sdbatch.storage import files
from sdbatch.storage.file_names import DEFAULT_CONFIG
from sdbatch.storage.safe_open import open_beneath
from sdbatch.storage.spelling import as_stored, in_other_case, normal

if TYPE_CHECKING:
    from sdbatch.storage.named_model import NamedModel

SECRET = ("state", "models", "configs")  # jobs read only their model there: a manifest would show other contents
FILES = ("init_img", "from_file")  # that a job names beside its model
OURS = ("jobs", *SECRET)  # not allowed as outdir
SAMPLES = "samples"  # in every output folder
WEIGHTS = (".ckpt", ".safetensors", ".pt", ".pth", ".bin")
PUBLISHED = re.compile(r"(?:grid-)?\d{1,20}\.png")  # names that jobs' pictures get there
LORAS = ("loras", "lora", "Lora", "LyCORIS")  # folders in models/, as programs call them
LORA_CONFIG = "adapter_config.json"  # PEFT's, beside a LoRA: how strong it is
BUNDLED = "bundle_emb."  # before the names of embeddings in the file of a LoRA
NOWHERE = (0, 0)
DRAIN = "DRAIN-"  # in jobs/, before the name of a node
MOST_FOLDERS = 2000  # looked through for weights
_exists, _is_link = os.path.exists, os.path.islink  # a Path raises on names that no file can have


class ModelFiles(NamedTuple):
    """The files of a model; a folder in diffusers format is its own config."""

    ckpt: Path
    config: Path
    vae: Path | None  # where the checkpoint's own autoencoder isn't used


def _below(relative: str) -> cached_property[Path]:
    return cached_property(lambda root: root.path / relative)


@dataclass(frozen=True)
class Root:
    """The folders of one service, and what the configuration says about jobs.

    Attributes:
        allowed: folders outside the root that jobs may name.
        named: models with a name in the configuration.
        defaults: values for fields that a job leaves out.
        lora_folders, embedding_folders: where more are found by name, beside those in models/.
    """

    path: Path
    allowed: tuple[Path, ...] = ()
    named: "tuple[tuple[str, NamedModel], ...]" = ()
    defaults: tuple[tuple[str, Any], ...] = ()
    lora_folders: tuple[Path, ...] = ()
    embedding_folders: tuple[Path, ...] = ()

    inbox = _below("jobs/inbox")  # files that people drop
    uploads = _below("jobs/inbox/uploads")  # pictures that visitors of the page sent, until the jobs have copies
    running = _below("jobs/running")  # claimed jobs, a folder each
    done = _below("jobs/done")  # finished jobs, a folder each
    failed = _below("jobs/failed")  # jobs that can't be drawn, a folder each with error.txt
    trash = _below("jobs/trash")  # jobs that a person deleted, until `prune` empties it
    marked = _below("jobs/.marked")  # whose favourites and tags were changed; storage/marks.py
    status = _below("jobs/status.json")  # what the service does now
    pause = _below("jobs/PAUSE")  # while it is there, nothing is drawn
    now = _below("jobs/NOW")  # while it is there, the hours in which to draw don't count; it goes when they begin
    outputs = _below("outputs")  # the pictures where the original scripts put them
    models = _below("models")  # checkpoints, often behind links
    wildcards = _below("wildcards")  # files of words that prompts name; it need not be there
    configs = _below("configs")  # the checkpoints' yaml files and the service's own configuration
    configuration = _below("configs/sdbatch.yaml")
    state = _below("state")  # the lock and what can be rebuilt

    def folders(self) -> tuple[Path, ...]:
        """All folders that must exist before the service can run."""
        jobs = (self.inbox, self.running, self.done, self.failed)
        return (*jobs, self.outputs, self.models, self.configs, self.state)

    def require(self, folder: Path) -> None:
        """Check that a folder of the root exists; it may be a link to a share that is away.

        Raises:
            NoRoot: it isn't there.
            OSError: it can't be read, or its disk fails.
        """
        try:
            folder.lstat()
        except (FileNotFoundError, NotADirectoryError) as error:
            template = (
                "{path} is not a root (there is no {folder}): mount its disk, give another with --root, or create one: "
                "sdbatch init {path}"
            )
            raise NoRoot(template, self.path, self.show(folder)) from error

    def find(self, field: str, named: str, bases: Sequence[Path]) -> Path:
        """The file that a job names, searched in each of `bases` in order; it is inside the root, with links resolved.

        Raises:
            Missing: it isn't there.
            JobError: it leads out of the root, or into the service's own folders, or is no path.
        """
        for base in bases:
            path = self._inside(field, named, base)
            if self._leads_into(path, SECRET):
                template = '{field}: "{named}" is a file of the service; name one beside the job or in outputs/'
                raise JobError(template, field, named)
            if _exists(path):
                return path
        _refuse_pattern(field, named)
        if any(_is_link(self.path_of(field, named, base)) for base in bases):
            template = '{field}: "{named}" is a link to a file that does not exist; mount its disk, or correct the link'
            raise Missing(template, field, named)
        hint = self._hint(field, named, bases)
        said = Message(
            '{field}: there is no "{named}" (searched in {places}){hint}', field, named, self.places(bases), hint
        )
        raise Missing(said, may_be_drawn=not hint and self._may_be_drawn(named))

    def _may_be_drawn(self, named: str) -> bool:
        """Whether an earlier job may still create it: an image name in an output folder."""
        folder, _, name = os.path.normpath(named).rpartition("/")
        try:
            place = self.output_folder(folder or ".")
        except JobError:
            return False
        is_in_the_way = any(_exists(part) and not part.is_dir() for part in (place, *place.parents))
        return bool(PUBLISHED.fullmatch(name)) and not is_in_the_way

    def open(self, field: str, named: str, found: Path) -> BufferedReader:
        """Open a file that `find` found; a link that changed since then can't lead out of the root.

        Raises:
            JobError: it is no plain file, or now leads out of the root.
        """
        path = found.resolve()
        place = next((p.resolve() for p in (self.path, *self.allowed) if _is_below(path, p.resolve())), self.path)
        try:
            handle = open_beneath(place, os.path.relpath(path, place))
        except OSError as error:
            if files.is_disk_trouble(error):
                raise
            raise JobError('{field}: "{named}" can\'t be read: {problem}', field, named, error.strerror) from error
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise JobError('{field}: "{named}" is not a file', field, named)
        return os.fdopen(handle, "rb")

    def drain_mark(self, node: str) -> Path:
        """While this file is there, a node of a cluster gets no job."""
        return self.path / f"jobs/{DRAIN}{node}"

    def drained(self) -> set[str]:
        """The nodes that get no job."""
        with suppress(OSError):
            return {path.name.removeprefix(DRAIN) for path in self.status.parent.glob(f"{DRAIN}*")}
        return set()

    def has_checkpoint(self) -> bool:
        """Whether the root contains any weights; broken links do not count."""
        seen = {_place(folder) for folder in (self.path / "jobs", self.outputs, self.state)}
        return any(
            _has_weights(folder, depth, any_name, seen)
            for folder, depth, any_name in (
                (self.models, 12, True),
                *((place, 5, False) for place in (self.configs, self.path, *self.allowed)),
            )
        )

    def find_model(self, field: str, named: str) -> Path:
        """A checkpoint, config or LoRA: as a path from the root, or by its name in the folders for it.

        Links there belong to the admin and are followed.
        """
        more = self.lora_places if field == "loras" else ()
        bases = (self.path, self.configs if field.endswith("config") else self.models, *more)
        for base in bases:
            path = self.path_of(field, named, base)
            if _exists(path) or _is_link(path):
                if not any(_is_below(path, folder) for folder in (self.models, self.configs, *self.lora_folders)):
                    path = self._inside(field, named, base)
                    self._refuse_links_out(field, named, path)
                if not _exists(path):
                    template = (
                        '{field}: "{named}" is a link to a file that does not exist; mount its disk, or correct the '
                        "link"
                    )
                    raise TemporarilyUnavailable(template, field, named)
                if not path.is_file() and not path.is_dir():
                    raise JobError('{field}: "{named}" is not a file', field, named)
                return path
            if any(p.is_symlink() and not p.exists() for p in path.parents if _is_below(p, self.path)):
                template = '{field}: "{named}" is behind a link to a disk that is not mounted'
                raise TemporarilyUnavailable(template, field, named)
        _refuse_pattern(field, named)
        looked = self.places(bases)
        if hint := self._hint(field, named, bases):
            raise JobError('{field}: there is no "{named}" (searched in {places}){hint}', field, named, looked, hint)
        template = '{field}: there is no "{named}" (searched in {places}); copy the file there, or link it'
        raise JobError(template, field, named, looked)

    @property
    def lora_places(self) -> tuple[Path, ...]:
        """The folders for LoRAs; of those in models/ such as are there, and the usual one."""
        usual, *others = (self.models / name for name in LORAS)
        return usual, *(folder for folder in others if folder.is_dir()), *self.lora_folders

    def _refuse_links_out(self, field: str, named: str, path: Path) -> None:
        """Check that all files of a folder are inside the root, because any user may have made it."""
        if path.is_dir():
            for number, part in enumerate(files.below(path)):
                if number > MOST_FOLDERS:
                    raise JobError('{field}: "{named}" has too many files for a model', field, named)
                self._inside(field, os.path.relpath(part, self.path.resolve()), self.path.resolve())

    def find_weights(self, ckpt: str, config: str, vae: str = "") -> ModelFiles:
        """The files of the model that a job names: by paths, or by a name in the configuration.

        A `config` or `vae` that the job names itself replaces that of the named model.
        """
        known = {normal(name): model for name, model in self.named}
        if normal(ckpt) not in known:
            found = self.find_model("ckpt", ckpt)
            own = found if found.is_dir() else self.find_model("config", config)
            return ModelFiles(found, own, self.find_model("vae", vae) if vae else None)
        model, where = known[normal(ckpt)], Message("models: {ckpt}: ", ckpt)
        found = self._find_named(where + "ckpt", model.ckpt)
        if found.is_dir():
            own = found
        elif config != DEFAULT_CONFIG:
            own = self.find_model("config", config)
        else:
            own = self._find_named(where + "config", model.config)
        other = self._find_named(where + "vae", model.vae) if model.vae else None
        return ModelFiles(found, own, self.find_model("vae", vae) if vae else other)

    def _find_named(self, field: str, named: str) -> Path:
        """A file that the configuration names; absolute paths are allowed there."""
        if not Path(named).is_absolute():
            return self.find_model(field, named)
        path = as_stored(Path(named))
        if not _exists(path):
            template = "{field} in configs/sdbatch.yaml: there is no {named}; mount its disk, or correct it"
            raise TemporarilyUnavailable(template, field, named)
        return path

    def output_folder(self, named: str) -> Path:
        """The folder for a job's images; it need not exist yet.

        Raises:
            JobError: it leads out of the root, or into the service's own folders.
        """
        path = self._inside("outdir", named, self.path)
        if _is_link(path / SAMPLES):
            self._inside("outdir", f"{named}/{SAMPLES}", self.path)
        if path == self.path.resolve() or self._leads_into(path, OURS):
            raise JobError(
                'outdir: "{named}" can\'t be an output folder; use one in outputs/, such as outputs/mine', named
            )
        return path

    def require_output_folder(self, path: Path, named: str) -> None:
        """The same of a folder that was found before: what leads where may have changed since.

        Raises:
            JobError: it leads elsewhere now.
        """
        inner = path / SAMPLES
        if os.path.realpath(inner) != str(inner):  # else there is no link in it, now as then
            self.output_folder(named)

    def show(self, path: Path) -> str:
        """A path for people: relative to the root if it is inside."""
        base = self.path if _is_below(path, self.path) else self.path.resolve()
        return path.relative_to(base).as_posix() if _is_below(path, base) else str(path)

    def places(self, bases: Sequence[Path]) -> str:
        """Folders as an error names them."""
        names = [Message("the root") if base == self.path else f"{self.show(base)}/" for base in dict.fromkeys(bases)]
        if len(names) == 1:
            return names[0]
        return Message("{names} and {name}", joined(", ", names[:-1]), names[-1])

    def _hint(self, field: str, named: str, bases: Sequence[Path]) -> str:
        """The name in another case that exists, if a job may name it."""
        for base in bases:
            found = in_other_case(self.path_of(field, named, base))
            if found is not None and self._may_be_told(field, found):
                return Message("; did you mean {path}?", os.path.relpath(found, base))
        return ""

    def _may_be_told(self, field: str, found: Path) -> bool:
        """Whether a job may name this file, and so learn that it exists."""
        if field not in FILES and any(_is_below(found, folder) for folder in (self.models, self.configs)):
            return True
        try:
            path = self._inside(field, str(found), self.path)
        except JobError:
            return False
        return not self._leads_into(path, SECRET)

    def _leads_into(self, path: Path, folders: Sequence[str]) -> bool:
        """Whether a path is in one of the root's folders by any spelling: on some filesystems Configs is configs."""
        places = {_place(place) for place in (path, *path.parents)} - {NOWHERE}
        top = self.path.resolve()
        return any(_is_below(path, top / name) or _place(top / name) in places for name in folders)

    def path_of(self, field: str, named: str, base: Path) -> Path:
        """`named` below `base`, in its stored spelling, without resolving links; `..` may not lead out."""
        if "\0" in named:
            raise JobError("{field}: a path can't contain a NUL character", field)
        path = Path(os.path.normpath(base / named))
        if not any(_is_below(path, place) for place in (self.path, self.path.resolve(), *self.allowed, base)):
            template = '{field}: "{named}" leads out of the root {path}; only files inside it may be named'
            raise JobError(template, field, named, self.path)
        return as_stored(path)

    def _inside(self, field: str, named: str, base: Path) -> Path:
        """`named` below `base` with links resolved; it must be inside the root or an allowed folder."""
        try:
            path = self.path_of(field, named, base).resolve()
        except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself, before Python 3.13
            raise JobError('{field}: "{named}" can\'t be followed to a file', field, named) from error
        if not any(_is_below(path, place.resolve()) for place in (self.path, *self.allowed)):
            template = '{field}: "{named}" is a link out of the root {path}; only files inside it may be named'
            raise JobError(template, field, named, self.path)
        return path


def _refuse_pattern(field: str, named: str) -> None:
    """Refuse * and ?: a job names one file, and waiting for a pattern would never end."""
    if "*" in named or "?" in named:
        raise JobError('{field}: "{named}" is a pattern; give one file or folder', field, named)


def _has_weights(folder: Path, depth: int, any_name: bool, seen: set[tuple[int, int]]) -> bool:
    """Whether a checkpoint is in a folder, or up to `depth` levels below; links are followed, each folder once."""
    try:
        place = _place(folder)
        if depth == 0 or place in seen or len(seen) > MOST_FOLDERS:
            return False
        seen.add(place)
        entries = sorted(folder.iterdir())
    except OSError:
        return False
    return any(_is_weights(path, any_name=any_name) for path in entries) or any(
        _has_weights(path, depth - 1, any_name, seen) for path in entries if not path.name.startswith(".")
    )


def _place(folder: Path) -> tuple[int, int]:
    """Device and inode of a folder; NOWHERE if there is none."""
    try:
        status = folder.stat()
    except OSError:
        return NOWHERE
    return status.st_dev, status.st_ino


def _is_weights(path: Path, *, any_name: bool) -> bool:
    try:
        return (any_name or path.suffix.lower() in WEIGHTS) and path.stat().st_size > 0 and path.is_file()
    except OSError:
        return False


def _is_below(path: Path, folder: Path) -> bool:
    return path == folder or str(path).startswith(os.path.join(folder, ""))  # noqa: PTH118 - "/" has a slash already
