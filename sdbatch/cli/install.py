"""`sdbatch install` and `sdbatch uninstall`: the systemd service."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdbatch.cli.common import DryRunOption, UserOption, app, configured, echo, root_at
from sdbatch.errors import InstallError
from sdbatch.messages import Message

if TYPE_CHECKING:
    from sdbatch.operations.install import InstallPlan


@app.command()
def install(
    root: Annotated[
        Path | None,
        typer.Option("--root", help="The root. Default: /srv/sdbatch, with --user ~/sdbatch."),
    ] = None,
    *,
    user: UserOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Install the systemd service: unit, account, folders.

    Each run writes the unit again. Put your own changes into a drop-in with
    `systemctl edit sdbatch`.

    Examples:
      sudo sdbatch install --root /srv/sdbatch
      sdbatch install --user --dry-run

    Exit codes:
      0   done, or shown
      1   the service could not run like this, or root is needed
      78  the configuration is invalid
    """
    from sdbatch.operations.install import plan_install, read_admins  # noqa: PLC0415

    place = root_at(root or (Path.home() / "sdbatch" if user else Path("/srv/sdbatch")))
    is_admins = os.geteuid() == 0 and not user
    place, settings = configured(place, (read_admins(place.configuration) or b"") if is_admins else None)
    plan = plan_install(place, settings, user=user)
    _carry_out(plan, user=user, dry_run=dry_run)
    if not dry_run:
        for line in (*plan.opened, *(plan.ownership.told if plan.ownership else ())):
            echo(line)
        systemctl = "systemctl --user" if user else "systemctl"
        lacks = (
            ""
            if place.has_checkpoint()
            else Message("; it needs a model: sdbatch init {path} --model FILE", place.path)
        )
        echo(Message("sdbatch is installed{lacks}", lacks))
        echo(Message("start it, now and at every boot: {systemctl} enable --now sdbatch", systemctl))
        if user:
            echo(Message("to keep it running while you are not logged in: loginctl enable-linger"))


@app.command()
def uninstall(*, user: UserOption = False, dry_run: DryRunOption = False) -> None:
    """Remove the systemd service. The root and its images stay.

    The service is stopped first. The account stays too.

    Examples:
      sudo sdbatch uninstall
      sdbatch uninstall --user --dry-run

    Exit codes:
      0  removed, or was not installed
      1  root is needed
    """
    from sdbatch.operations.install import plan_uninstall  # noqa: PLC0415

    plan = plan_uninstall(user=user)
    _carry_out(plan, user=user, dry_run=dry_run)
    if not dry_run or not plan.remove:
        echo(Message("sdbatch is uninstalled") if plan.remove else Message("there is nothing to uninstall"))


def _carry_out(plan: "InstallPlan", *, user: bool, dry_run: bool) -> None:
    if dry_run:
        for line in plan.lines():
            echo(line)
        return
    if not user and os.geteuid() != 0:
        raise InstallError("only root can do this for the whole machine: use sudo, or --user for yourself alone")
    plan.carry_out()
    if not plan.running:
        echo(Message("systemd is not running here; it will find the change when it starts"), err=True)
