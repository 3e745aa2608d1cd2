"""`sdbatch bundle`: all that a server without any network needs, in one archive.

    sdbatch-bundle/
        install.sh      sets it all up; needs a Python of the right version, and nothing else
        SHA256SUMS      of every other file; install.sh looks at them first
        bundle.conf     what the bundle is for
        wheels/         sdbatch with the vocabulary and the demo, everything it needs, and pip
        configs/ docs/ systemd/ README.md     to read
        models/         on request: the checkpoint, and its config

A plain tar: wheels are compressed already, and weights can't be.
"""

import hashlib
import io
import tarfile
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from sdbatch import __version__
from sdbatch.errors import BundleError
from sdbatch.operations import wheels
from sdbatch.operations.wheels import Target
from sdbatch.storage import files

FOLDER = "sdbatch-bundle"
TO_READ = ("configs", "docs", "systemd", "README.md", "LICENSE")
INSTALLER = Path(__file__).parents[1] / "data" / "install.sh"
SOURCE = Path(__file__).resolve().parents[2]

Contents = dict[str, Path | bytes]  # by name in the archive


def make(output: Path, target: Target, ckpt: Path | None, config: Path | None) -> None:
    """Collect everything and write the archive, which appears complete or not at all.

    Raises:
        BundleError: something can't be downloaded; says what to do.
    """
    if not (SOURCE / "pyproject.toml").exists():
        raise BundleError(
            "this sdbatch was installed without its source, which a bundle is built from: get the "
            "source, and run `make bundle` in it"
        )
    model = _model(ckpt, config)
    files.make_dir(output.absolute().parent)
    # Beside the archive, because /tmp may be too small.
    with TemporaryDirectory(prefix=f"{files.BUSY_PREFIX}bundle-", dir=output.absolute().parent) as scratch:
        folder = Path(scratch)
        wheels.collect(wheels.build(SOURCE, folder), folder, target)
        pack(output, _conf(target), [*folder.glob("*.whl")], model)


def pack(output: Path, conf: bytes, gathered: list[Path], model: Contents) -> None:
    """Write the archive with these wheels."""
    contents: Contents = {"bundle.conf": conf, "install.sh": INSTALLER}
    contents |= {f"wheels/{path.name}": path for path in gathered}
    for name in TO_READ:
        place = SOURCE / name
        found = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
        contents |= {path.relative_to(SOURCE).as_posix(): path for path in found}
    contents |= model
    sums = "".join(f"{_sha256(contents[name])}  {name}\n" for name in sorted(contents))
    with (
        files.drafted(output, durable=True) as draft,
        tarfile.open(fileobj=draft, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, content in sorted((contents | {"SHA256SUMS": sums.encode()}).items()):
            _add(tar, name, content)


def _model(ckpt: Path | None, config: Path | None) -> Contents:
    if config is not None and ckpt is None:
        raise BundleError("--config is the config of a checkpoint: give --ckpt too")
    wanted = {"models/model.ckpt": ckpt, "models/model.yaml": config}
    for path in wanted.values():
        if path is not None and not path.is_file():
            said = "{path} is a folder, not a file: copy it separately" if path.is_dir() else "{path} is not a file"
            raise BundleError(said, path)
    return {name: path for name, path in wanted.items() if path is not None}


def _conf(target: Target) -> bytes:
    """In the form that install.sh reads."""
    text = f"version={__version__}\npython={target.python}\nmachine={target.machine}\nglibc={target.glibc}\n"
    return text.encode()


def _sha256(content: Path | bytes) -> str:
    return files.sha256(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()


def _add(tar: tarfile.TarFile, name: str, content: Path | bytes) -> None:
    """Files in the archive belong to no particular user."""
    info = tarfile.TarInfo(f"{FOLDER}/{name}")
    info.mtime, info.mode = int(time.time()), 0o755 if name.endswith(".sh") else 0o644
    with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as file:
        info.size = file.seek(0, io.SEEK_END)
        file.seek(0)
        tar.addfile(info, file)
