"""`sdbatch bundle`: one archive for a server without any network."""

from pathlib import Path
from typing import Annotated

import typer

from sdbatch.cli.common import app


@app.command()
def bundle(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write, a tar archive.")],
    platform: Annotated[
        str,
        typer.Option(
            help="The server's platform: linux-x86_64, linux-aarch64, or manylinux_2_34_x86_64 (glibc 2.34 or newer)."
        ),
    ] = "",
    python: Annotated[str, typer.Option(help="The server's Python version, such as 3.11.")] = "",
    ckpt: Annotated[Path | None, typer.Option(metavar="FILE", help="A checkpoint to include.")] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its config, if it is not Stable Diffusion v1.")
    ] = None,
) -> None:
    r"""Pack everything for a server without internet into one file.

    Run it in a checkout, on a machine with internet:
      sdbatch bundle -o sdbatch-bundle.tar --platform linux-x86_64 \
          --python 3.11 --ckpt v1-5-pruned.ckpt

    Then, on the server:
      tar xf sdbatch-bundle.tar
      sh sdbatch-bundle/install.sh /opt/sdbatch --root /srv/sdbatch

    Without --platform and --python the file fits this machine. It takes
    about 3 GB, because torch contains CUDA, plus the size of the
    checkpoint. While it is made, the disk needs 3 GB more. pip's own
    variable PIP_EXTRA_INDEX_URL chooses another torch:
      https://download.pytorch.org/whl/cpu    for the CPU, 0.3 GB in all
      https://download.pytorch.org/whl/cu126  for an older NVIDIA driver

    Exit codes:
      0  the file is written; its name is printed
      1  something can't be downloaded; nothing is written
    """
    from sdbatch.operations import bundle  # noqa: PLC0415
    from sdbatch.operations.wheels import Target, this_machine  # noqa: PLC0415

    usual_platform, usual_python = this_machine()
    bundle.make(output, Target.of(platform or usual_platform, python or usual_python), ckpt, config)
    typer.echo(output)
