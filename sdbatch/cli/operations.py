"""Commands for whoever looks after a service: what it does, steering it, installing it, finding out what is wrong."""

import json
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdbatch.cli.common import (
    DryRunOption,
    JsonOption,
    RootOption,
    UserOption,
    app,
    configured,
    named_root,
    open_root,
    root_at,
)
from sdbatch.errors import InstallError, JobError

if TYPE_CHECKING:
    from sdbatch.operations.install import Plan


@app.command()
def status(
    root: RootOption = Path(),
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Show it live, until Ctrl-C.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Tell on one screen what is drawn, what waits in which order, and what failed last and why.

    It reads files only: it works over a share, and while the service is down. With --json it says what jobs/status.json
    does, the queue and the failures as the folders have them now, and `is_running`.

    Examples: sdbatch status --root /srv/sdbatch; sdbatch status --json | jq .job.eta_seconds

    Exit codes: 0 answered, whether the service runs or not; 69 there is no root; 2 --watch without a terminal.
    """
    from sdbatch.spool import status_reader  # noqa: PLC0415

    place = named_root(root)
    status_reader.check_root(place)
    if as_json:
        typer.echo(json.dumps(status_reader.look(place, datetime.now(UTC)), indent=1))
        return
    if watch and not sys.stdout.isatty():
        raise typer.BadParameter("--watch needs a terminal; elsewhere ask again and again with --json")
    from sdbatch.service import screen  # noqa: PLC0415 - rich, which --json has no need of

    if not watch:
        screen.show(place, datetime.now(UTC))
        return
    with suppress(KeyboardInterrupt):
        screen.watch(place)


@app.command()
def logs(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job's id, or a part of it, such as 000042.")],
    root: RootOption = Path(),
    *,
    as_json: JsonOption = False,
) -> None:
    """Show what the service said about a job: the log.jsonl in its folder.

    Under systemd the journal has the same lines: journalctl JOB_ID=20261122T101530Z-000042-truck

    Examples: sdbatch logs 000042 --root /srv/sdbatch; sdbatch logs 000042 --json | jq .event

    Exit codes: 0 shown; 1 there is no such job, or nothing was written about it.
    """
    from sdbatch.client.job_log import log_lines  # noqa: PLC0415

    for line in log_lines(named_root(root), job, as_json=as_json):
        typer.echo(line)


@app.command()
def config(root: RootOption = Path(), *, as_json: JsonOption = False) -> None:
    """Print every setting in force and where it came from: default, configs/sdbatch.yaml with its line, environment.

    Where a running service still has another value, that is told, and how it gets the new one.

    Examples: sdbatch config --root /srv/sdbatch; SDBATCH_DEVICE=cpu sdbatch config | grep device

    Exit codes: 0 the configuration is right; 78 it is wrong.
    """
    from sdbatch.operations.config_report import config_lines  # noqa: PLC0415

    for line in config_lines(named_root(root), as_json=as_json):
        typer.echo(line)


JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="A file's name in the inbox, a job's id, or a part of one.")
]


@app.command()
def pause(
    reason: Annotated[str, typer.Argument(help="For whoever wonders; it stands in jobs/PAUSE.")] = "",
    root: RootOption = Path(),
    *,
    unload: Annotated[bool, typer.Option("--unload", help="Free the GPU's memory too.")] = False,
) -> None:
    """Finish the pictures in work, then let everything wait; `sdbatch resume` goes on.

    Example: sdbatch pause "the card is needed" --unload

    Exit codes: 0 it will; 69 there is no root.
    """
    from sdbatch.client import control  # noqa: PLC0415

    typer.echo(control.pause(named_root(root), reason, unload=unload))


@app.command()
def resume(
    root: RootOption = Path(),
    *,
    now: Annotated[bool, typer.Option("--now", help="Draw outside active_hours too, until they begin.")] = False,
) -> None:
    """Go on after a pause; with --now outside the hours in which to draw, too.

    Examples: sdbatch resume --root /srv/sdbatch; sdbatch resume --now

    Exit codes: 0 it does, or was not paused; 69 there is no root.
    """
    from sdbatch.client import control  # noqa: PLC0415

    typer.echo(control.resume(named_root(root), now=now))


@app.command()
def cancel(
    job: JobArgument = "",
    root: RootOption = Path(),
    *,
    everything: Annotated[bool, typer.Option("--all", help="All that waits or is drawn.")] = False,
) -> None:
    """Take a job out, waiting or in work, or a file with all its jobs. Deleting its file from the inbox does as well.

    Examples: sdbatch cancel truck.yaml; sdbatch cancel 000042; sdbatch cancel 000042.3; sdbatch cancel --all

    Exit codes: 0 done; 1 there is no such job, or more than one.
    """
    from sdbatch.client import control  # noqa: PLC0415

    if bool(job) == everything:
        raise JobError("name a job, or say --all")
    place = named_root(root)
    lines = control.cancel_all(place) if everything else [control.cancel(place, job)]
    for line in lines or ["nothing waits or is drawn"]:
        typer.echo(line)


@app.command()
def retry(
    job: Annotated[str, typer.Argument(metavar="JOB", help="A job's id, its number, or a part of it.")] = "",
    root: RootOption = Path(),
    *,
    all_failed: Annotated[bool, typer.Option("--all-failed", "--all", help="Everything in jobs/failed/.")] = False,
) -> None:
    """Try a failed job again, with the pictures that it has. Its file in jobs/failed/ may have been mended before.

    The number of a file of several jobs means all of them that failed.

    Examples: sdbatch retry 000042; sdbatch retry 000042.3; sdbatch retry --all-failed --root /srv/sdbatch

    Exit codes: 0 done; 1 there is no such job, or more than one.
    """
    from sdbatch.client import control  # noqa: PLC0415

    if bool(job) == all_failed:
        raise JobError("name a job, or say --all-failed")
    place = named_root(root)
    lines = control.retry_all(place) if all_failed else [control.retry(place, job)]
    for line in lines or ["nothing in jobs/failed/ is to be tried again"]:
        typer.echo(line)


@app.command()
def bump(job: JobArgument, root: RootOption = Path()) -> None:
    """Put a waiting file into jobs/inbox/urgent/, before all that is not there. What it names may stay where it is.

    Of a file that was taken already, all jobs that wait go first.

    Examples: sdbatch bump truck.yaml; sdbatch bump 000042

    Exit codes: 0 done; 1 there is no such file, or more than one.
    """
    from sdbatch.client import control  # noqa: PLC0415

    typer.echo(control.bump(named_root(root), job))


@app.command()
def clean(
    root: RootOption = Path(),
    *,
    apply: Annotated[bool, typer.Option("--apply", help="Do it, and don't just say it.")] = False,
) -> None:
    """Show which folders the rules of `keep:` in configs/sdbatch.yaml give up; an idle service takes them away.

    Examples: sdbatch clean --root /srv/sdbatch; sdbatch clean --apply

    Exit codes: 0 shown, or done; 69 there is no root; 78 the configuration is wrong.
    """
    from sdbatch.spool import retention  # noqa: PLC0415

    place, settings = open_root(root)
    place.require(place.inbox)
    outdated = [*retention.outdated(place, settings.retention, datetime.now(UTC))]
    if not outdated:
        typer.echo("the rules of keep: give nothing up")
    for folder in outdated:
        if apply:
            retention.remove(place, folder, outputs=settings.retention.outputs)
        typer.echo(f"{'removed' if apply else 'would remove'} {place.show(folder)}")


@app.command()
def backup(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is not there yet.")],
    root: RootOption = Path(),
    *,
    models: Annotated[
        bool | None, typer.Option("--models/--no-models", help="With models/; if not said, where that takes no room.")
    ] = None,
) -> None:
    """Copy the root to DIR, while the service works or not: each job is in the copy once, and DIR is a root itself.

    On the same filesystem pictures and models become hard links and take no room. state/ is left out, since it is made
    anew. A service on the copy draws what was not finished.

    Example: sdbatch backup /srv/backup/monday --root /srv/sdbatch

    Exit codes: 0 done; 1 DIR is there already or lies in the root, or something can't be read; 69 there is no root;
    74 the disk failed or is full. Then nothing is left there.
    """
    from sdbatch.operations import backup as copying  # noqa: PLC0415

    target = Path(os.path.abspath(directory))  # noqa: PTH100 - a link keeps its name
    for line in copying.make(named_root(root), target, models=models):
        typer.echo(f"note: {line}", err=True)
    typer.echo(target)


@app.command()
def install(
    root: Annotated[
        Path | None,
        typer.Option("--root", help="The root to serve: /srv/sdbatch, with --user ~/sdbatch, if not given."),
    ] = None,
    *,
    user: UserOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Make it a service of systemd: write the unit, make the account and the root's folders.

    Written anew each time; changes of your own belong into `systemctl edit sdbatch`.

    Examples: sudo sdbatch install --root /srv/sdbatch; sdbatch install --user --dry-run

    Exit codes: 0 done, or shown; 1 the service could not run like that, or this needs root; 78 the
    configuration is wrong.
    """
    from sdbatch.operations.install import plan_install, read_admins  # noqa: PLC0415

    place = root_at(root or (Path.home() / "sdbatch" if user else Path("/srv/sdbatch")))
    is_admins = os.geteuid() == 0 and not user
    place, settings = configured(place, (read_admins(place.configuration) or b"") if is_admins else None)
    plan = plan_install(place, settings, user=user)
    _carry_out(plan, user=user, dry_run=dry_run)
    if not dry_run:
        for line in (*plan.opened, *(plan.ownership.told if plan.ownership else ())):
            typer.echo(line)
        systemctl = "systemctl --user" if user else "systemctl"
        lacks = "" if place.has_checkpoint() else f"; it needs a model: sdbatch init {place.path} --model FILE"
        typer.echo(f"sdbatch is installed{lacks}")
        typer.echo(f"start it, now and at every boot: {systemctl} enable --now sdbatch")
        if user:
            typer.echo("let it run while you are not logged in: loginctl enable-linger")


@app.command()
def uninstall(*, user: UserOption = False, dry_run: DryRunOption = False) -> None:
    """Stop the service and take out what `install` wrote; the root and its pictures stay, and the account too.

    Examples: sudo sdbatch uninstall; sdbatch uninstall --user --dry-run

    Exit codes: 0 gone, or never there; 1 this needs root.
    """
    from sdbatch.operations.install import plan_uninstall  # noqa: PLC0415

    plan = plan_uninstall(user=user)
    _carry_out(plan, user=user, dry_run=dry_run)
    if not dry_run or not plan.remove:
        typer.echo("sdbatch is uninstalled" if plan.remove else "there is nothing to uninstall")


def _carry_out(plan: "Plan", *, user: bool, dry_run: bool) -> None:
    if dry_run:
        for line in plan.lines():
            typer.echo(line)
        return
    if not user and os.geteuid() != 0:
        raise InstallError("only root can do this for the whole machine: run it with sudo, or as yourself with --user")
    plan.carry_out()
    if not plan.running:
        typer.echo("no systemd runs here now; one that is started will find what was changed", err=True)


@app.command()
def doctor(
    root: RootOption = Path(),
    ckpt: Annotated[str, typer.Option(metavar="NAME", help="The checkpoint to load, as a job would name it.")] = "",
    config: Annotated[str, typer.Option(metavar="NAME", help="Its config, likewise.")] = "",
    *,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Don't load the checkpoint, which takes time and three times its size of memory."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON, for programs.")] = False,
) -> None:
    """Look at everything that drawing depends on, and tell what to do where something is wrong.

    Folders, filesystem, inotify, space, clock, torch and its device, tokenizer, checkpoint and config, that nothing
    asks for the network, the service and its unit. Nothing is changed. Run it as the service's user:

        sdbatch doctor --root /srv/sdbatch

        sdbatch doctor --root /srv/sdbatch --quick --json | jq .level

        sdbatch doctor --ckpt other.safetensors --config other.yaml

    Exit codes: 0 all is well, but for warnings; 1 there is a problem.
    """
    from sdbatch.operations import doctor as doc  # noqa: PLC0415

    place = named_root(root)
    findings = []
    for finding in doc.examine(place, ckpt or doc.DEFAULT["ckpt"], config or doc.DEFAULT["config"], quick=quick):
        findings.append(finding)
        if not as_json:
            colour = {"ok": typer.colors.GREEN, "warning": typer.colors.YELLOW, "problem": typer.colors.RED}
            level, rest = finding.level, doc.as_lines(finding).removeprefix(finding.level)
            typer.echo(typer.style(level, fg=colour[level]) + rest)
    if as_json:
        typer.echo(doc.as_json(place, findings))
    raise typer.Exit(1 if doc.worst(findings) == "problem" else 0)


@app.command()
def bundle(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The archive to write (a plain tar).")],
    platform: Annotated[
        str,
        typer.Option(help="The server's: linux-x86_64, linux-aarch64, manylinux_2_34_x86_64 (glibc 2.34 or newer)."),
    ] = "",
    python: Annotated[str, typer.Option(help="The server's version of Python, such as 3.11.")] = "",
    ckpt: Annotated[Path | None, typer.Option(metavar="FILE", help="A checkpoint to take along.")] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="Its yaml, if it is not v1's.")] = None,
) -> None:
    """Pack all that a server without any network needs into one archive; run it in a checkout, with a network.

    On the laptop, then on the server:

        sdbatch bundle -o sdbatch-bundle.tar --platform linux-x86_64 --python 3.11 --ckpt v1-5-pruned.ckpt

        tar xf sdbatch-bundle.tar && sh sdbatch-bundle/install.sh /opt/sdbatch --root /srv/sdbatch

    Without --platform and --python: what fits this machine. Expect 3 GB, since torch brings CUDA, and the size of
    the checkpoint on top; meanwhile the disk needs room for 3 GB more. pip's own settings choose another torch:
    PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu one for the CPU (0.3 GB in all), .../whl/cu126 one for
    a driver that doesn't know the newest CUDA.

    Exit codes: 0 the archive is written, and its name printed; 1 something can't be had, and nothing is written.
    """
    from sdbatch.operations import bundle as packing  # noqa: PLC0415
    from sdbatch.operations.wheels import Target, this_machine  # noqa: PLC0415

    usual_platform, usual_python = this_machine()
    packing.make(output, Target.of(platform or usual_platform, python or usual_python), ckpt, config)
    typer.echo(output)
