"""`sdbatch serve`: runs the service."""

import faulthandler
import os
from pathlib import Path
from typing import Annotated

import typer

from sdbatch.cli.common import RootOption, app, configured, named_root, say
from sdbatch.errors import NoRoot


@app.command()
def serve(
    root: RootOption = Path(),
    *,
    drain: Annotated[bool, typer.Option("--drain", help="Run the jobs that are there, then exit.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more.")] = False,
) -> None:
    """Run the service: watch DIR/jobs/inbox and generate images.

    It runs until it is stopped; with --drain until no job is left.

    Example:
      sdbatch serve --root /srv/sdbatch

    Exit codes:
      0   stopped, or all done
      1   with --drain: a job failed
      69  there is no root (its disk is not mounted?); with --drain also:
          nothing can be generated for now (no GPU, no checkpoint, paused)
      74  the disk failed, or a folder of the inbox can't be read
      75  another service uses this root
      78  the configuration is invalid
    """
    from sdbatch.service import daemon  # noqa: PLC0415 - watchdog and structlog cost the quick commands time
    from sdbatch.telemetry import log  # noqa: PLC0415 - watchdog and structlog cost the quick commands time

    faulthandler.enable()  # after the watchdog's SIGABRT the log shows where it hung
    place = named_root(root)
    try:
        place.require(place.inbox)  # otherwise folders would be created on the empty mount point of a disk
    except NoRoot as error:  # the disk may be mounted soon: systemd tries again
        raise typer.Exit(say(error, os.EX_UNAVAILABLE)) from None
    log.set_up(verbose=verbose, job_folders=(place.running, place.done, place.failed))
    place, settings = configured(place)
    raise typer.Exit(daemon.run(place, settings, drain=drain))
