"""`sdbatch submit`: puts job files into the inbox."""

from pathlib import Path
from typing import Annotated

import typer

from sdbatch.cli.common import FilesArgument, RootOption, SetOption, app, echo, open_to_write_jobs, say
from sdbatch.errors import JobError, NoRoot
from sdbatch.messages import Message

TemplateOption = Annotated[
    Path | None, typer.Option(help="A job file for all images of the folders that are named.", show_default=False)
]


@app.command()
def submit(
    files: FilesArgument,
    settings: SetOption = [],  # noqa: B006 - typer's own
    root: RootOption = Path(),
    template: TemplateOption = None,
) -> None:
    """Check job files and put them into the inbox.

    An image or prompt file that lies beside the job file goes along: both
    get a folder of their own. If the name already waits in the inbox, the
    new file gets a number.

    A folder of images, or an image, needs --template: a job file that says
    what to do with each of them.

    Examples:
      sdbatch submit truck.yaml --root /srv/sdbatch
      sdbatch submit -s scale=5 -s seed=1..20 truck.yaml
      sdbatch submit photos/ --template i2i.yaml

    Exit codes:
      0   all are in the inbox
      1   a job would fail, or is not named like one; its file was not
          submitted
      69  there is no root
      74  the disk failed
      78  the configuration is invalid
    """
    from sdbatch.client import submit  # noqa: PLC0415

    place, config = open_to_write_jobs(root)
    is_good = True
    for path in files:
        try:
            if template is None:
                dropped = submit.submit(path, place, config.limits, settings)
            else:
                dropped = submit.submit_images(path, template, place, config.limits, settings)
        except NoRoot:
            raise
        except JobError as error:  # the other files are still submitted
            say(error, 1)
            is_good = False
            continue
        typer.echo(dropped.path)
        for named in dropped.along:
            echo(Message("{named} was dropped too", named), err=True)
    raise typer.Exit(0 if is_good else 1)
