"""The commands, their wiring and exit codes. Nothing here imports torch; what only `serve` needs is imported there."""

import errno
import faulthandler
import json
import os
import stat
import sys
from importlib.resources import files as package_files
from pathlib import Path
from typing import Annotated, Any

import typer

from sdbatch import __version__
from sdbatch.cli import history, operations, web  # noqa: F401 - their commands belong to the app
from sdbatch.cli import model as _model  # noqa: F401 - likewise
from sdbatch.cli.common import (
    HELP_NAMES,
    FilesArgument,
    RootOption,
    admins_root,
    app,
    configured,
    named_root,
    open_root,
    stored,
)
from sdbatch.errors import ConfigError, JobError, NoRoot, RootBusy, SdbatchError
from sdbatch.operations import account
from sdbatch.storage.files import copy_atomically, is_disk_trouble, make_dir, same_content, write_atomically

EXIT_CONFIG = 78  # EX_CONFIG: restarting cannot help, systemd is told not to
DEMO_DEFAULTS = "\ndefaults: {H: 64, W: 64}  # what the demo model was trained on\n"
EXIT_BUSY = 75  # EX_TEMPFAIL: another service holds the root


@app.callback(invoke_without_command=True)
def _top(*, version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"sdbatch {__version__}")
        raise typer.Exit


@app.command()
def serve(
    root: RootOption = Path(),
    *,
    drain: Annotated[bool, typer.Option("--drain", help="Draw what is there, then exit.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more.")] = False,
) -> None:
    """Watch DIR/jobs/inbox and draw, until stopped; with --drain until nothing is left.

    Example: sdbatch serve --root /srv/sdbatch

    Exit codes: 0 stopped, or all done; 1 drained, but a job failed; 69 there is no root (its disk is not mounted?), or
    with --drain nothing can be drawn for now (no GPU, no checkpoint, paused), jobs stay where they are; 74 the disk
    failed, or the inbox can't be read; 75 another service holds the root; 78 the configuration is wrong.
    """
    from sdbatch.service import daemon  # noqa: PLC0415 - watchdog and structlog cost the quick commands time
    from sdbatch.telemetry import log  # noqa: PLC0415 - watchdog and structlog cost the quick commands time

    faulthandler.enable()  # the watchdog's SIGABRT then shows where it hung
    place = named_root(root)
    try:
        place.require(place.inbox)  # else folders would be made on the mount point of a disk that is not mounted
    except NoRoot as error:  # which it may be soon: systemd tries again
        raise typer.Exit(_say(error, os.EX_UNAVAILABLE)) from None
    log.set_up(verbose=verbose, job_folders=(place.running, place.done, place.failed))
    place, settings = configured(place)
    raise typer.Exit(daemon.run(place, settings, drain=drain))


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to make the root.")],
    model: Annotated[
        Path | None, typer.Option(help="A checkpoint to lay where jobs look for it.", callback=stored)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="The checkpoint's yaml, if it is not Stable Diffusion v1's.", callback=stored)
    ] = None,
    *,
    demo: Annotated[
        bool, typer.Option("--demo", help="Lay the demo model there: 64x64 pixels, a hundred things.")
    ] = False,
) -> None:
    """Make a root: folders, configuration, the model configs. What is there already stays as it is.

    Examples: sdbatch init /srv/sdbatch; sdbatch init demo --demo

    Exit codes: 0 made, or there already; 78 another file is in the way.
    """
    from sdbatch.service import daemon  # noqa: PLC0415

    place = admins_root(directory)
    daemon.prepare(place)
    data = Path(str(package_files("sdbatch"))) / "data"
    if demo:
        model, config = data / "demo" / "model.safetensors", data / "demo" / "v1-inference.yaml"
    shipped = place.configs / "stable-diffusion" / "v1-inference.yaml"
    checkpoint = place.models / "ldm" / "stable-diffusion-v1" / "model.ckpt"
    make_dir(checkpoint.parent)
    _lay(config, shipped)
    _lay(model, checkpoint)
    configs = {name: shipped.with_name(name) for name in (shipped.name, "v2-inference.yaml", "v2-inference-v.yaml")}
    laion400m = "txt2img-1p4B-eval.yaml"
    configs[laion400m] = place.configs / "latent-diffusion" / laion400m
    for source, target in configs.items():
        if not target.exists():
            _lay(data / "configs" / source, target)
    if not place.configuration.exists():
        text = (data / "configs" / "sdbatch.yaml").read_text(encoding="utf-8")
        text = text.replace("\ndefaults: {}\n", DEMO_DEFAULTS) if demo else text
        write_atomically(place.configuration, text.encode(), mode=0o640)  # it will hold the hash of a password
    typer.echo(f"{place.path} is ready: drop job files into {place.inbox}")
    if not checkpoint.exists():
        typer.echo(f"no checkpoint yet: copy or link one to {checkpoint}")


@app.command()
def validate(files: FilesArgument, root: RootOption = Path()) -> None:
    """Check job files without drawing, and tell how many pictures of which size they ask for.

    Example: sdbatch validate truck.yaml --root /srv/sdbatch

    Exit codes: 0 all good; 1 a job would fail; 78 the configuration is wrong.
    """
    from sdbatch.client.validate import check_file  # noqa: PLC0415

    place, settings = open_root(root)
    is_good = True
    for path in files:
        for line, is_ok in check_file(path, place, settings.limits):
            typer.echo(line, err=not is_ok)
            is_good &= is_ok
    raise typer.Exit(0 if is_good else 1)


@app.command()
def submit(files: FilesArgument, root: RootOption = Path()) -> None:
    """Drop job files into the inbox the right way: checked, under a hidden name, synced, then renamed.

    The picture or prompt file that a job names beside it goes along, with the job in a folder of its own. A name that
    waits there already is not overwritten: the new file gets a number.

    Example: sdbatch submit truck.yaml --root /srv/sdbatch

    Exit codes: 0 all lie in the inbox; 1 a job would fail, or has no name of one, and its file was not dropped;
    69 there is no root; 74 the disk failed; 78 the configuration is wrong.
    """
    from sdbatch.client.submit import submit as drop  # noqa: PLC0415

    place, settings = open_root(root)
    is_good = True
    for path in files:
        try:
            dropped = drop(path, place, settings.limits)
        except NoRoot:
            raise
        except JobError as error:  # the others go their way
            _say(error, 1)
            is_good = False
            continue
        typer.echo(dropped.path)
        for named in dropped.along:
            typer.echo(f"{named} was taken along", err=True)
    raise typer.Exit(0 if is_good else 1)


@app.command()
def schema() -> None:
    """Print the JSON Schema of job files, for editors and other programs.

    Example: sdbatch schema > job.schema.json

    Exit codes: 0 printed.
    """
    from sdbatch.job.json_schema import job_schema  # noqa: PLC0415

    typer.echo(json.dumps(job_schema(), indent=2, ensure_ascii=False))


def _lay(source: Path | None, target: Path) -> None:
    """Copy a file that was asked for; another one in its place is never overwritten, and never taken for it."""
    if source is None:
        return
    if target.exists() and not same_content(source, target):
        raise ConfigError(f"{target} is there already, and is not {source}; move it away first")
    if not target.exists():
        make_dir(target.parent)
        with source.open("rb") as file:
            copy_atomically(file, target)  # half a checkpoint would be taken for one


def main() -> None:
    """The `sdbatch` command: errors become one plain line and an exit code."""
    command = typer.main.get_command(app)
    _untyped_flags(command)
    try:
        command(prog_name="sdbatch")
    except ConfigError as error:
        sys.exit(_say(error, EXIT_CONFIG))
    except RootBusy as error:
        sys.exit(_say(error, EXIT_BUSY))
    except NoRoot as error:
        sys.exit(_say(error, os.EX_UNAVAILABLE))
    except PermissionError as error:
        sys.exit(_say(f"{error.filename}: {error.strerror}{_who_may(error.filename)}", 1))
    except OSError as error:
        said = f"{error.filename}: {error.strerror}" if error.filename else error
        sys.exit(_say(said, os.EX_IOERR if is_disk_trouble(error) else 1))
    except SdbatchError as error:
        sys.exit(_say(error, 1))


def _untyped_flags(command: Any) -> None:
    """Flags take no value, and the help is not to say that they do."""
    context = command.context_class(command, help_option_names=HELP_NAMES)
    for param in (*command.params, command.get_help_option(context)):
        if getattr(param, "is_flag", False):
            param.metavar = ""
    for inner in getattr(command, "commands", {}).values():
        _untyped_flags(inner)


def _who_may(refused: str | None) -> str:
    """Whom to ask: the group of a folder, where its members could do what was refused."""
    for folder in Path(refused or os.curdir).absolute().parents:
        try:
            status = folder.stat()
        except OSError:
            continue  # what it lies in is closed, too
        if status.st_mode & stat.S_IWGRP and status.st_gid not in {os.getegid(), *os.getgroups()}:
            joins = f"sudo usermod -aG {status.st_gid} {account.name_of(os.geteuid())}"
            return f"; the group of {folder} may do this ({joins}, and log in anew)"
        break
    return ""


def _say(error: object, code: int) -> int:
    typer.echo(f"sdbatch: {error}", err=True)
    if account.stepped_down and os.strerror(errno.EACCES) in str(error):
        typer.echo(f"this is done as {account.name_of(os.geteuid())}, whose root it is, and not as root", err=True)
    return code
