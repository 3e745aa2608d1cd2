"""`sdbatch bundle`: one archive for a server without any network."""

from pathlib import Path
from typing import Annotated

import typer

from sdbatch.cli.common import app


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
    from sdbatch.operations import bundle  # noqa: PLC0415
    from sdbatch.operations.wheels import Target, this_machine  # noqa: PLC0415

    usual_platform, usual_python = this_machine()
    bundle.make(output, Target.of(platform or usual_platform, python or usual_python), ckpt, config)
    typer.echo(output)
