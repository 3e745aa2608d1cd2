"""`sdbatch init`: creates a root."""

from importlib.resources import files as package_files
from pathlib import Path
from typing import Annotated

import typer

from sdbatch.cli.common import admins_root, app, echo, stored
from sdbatch.errors import ConfigError
from sdbatch.messages import Message
from sdbatch.storage.files import copy_atomically, make_dir, same_content, write_atomically

DEMO_DEFAULTS = "\ndefaults: {H: 64, W: 64}  # what the demo model was trained on\n"


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The root to create.")],
    model: Annotated[
        Path | None, typer.Option(help="A checkpoint to copy to the default place.", callback=stored)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Its config, if it is not Stable Diffusion v1.", callback=stored)
    ] = None,
    *,
    demo: Annotated[bool, typer.Option("--demo", help="Use the demo model: 64x64 pixels, a hundred things.")] = False,
) -> None:
    """Create a root: folders, configuration, model configs.

    Existing files are not changed.

    Examples:
      sdbatch init /srv/sdbatch
      sdbatch init demo --demo

    Exit codes:
      0   the root is ready
      78  another file is in the way
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
    echo(Message("{path} is ready: drop job files into {inbox}", place.path, place.inbox))
    if not checkpoint.exists():
        echo(Message("no checkpoint yet: copy or link one to {checkpoint}", checkpoint))


def _lay(source: Path | None, target: Path) -> None:
    """Copy a file into the root; a different file in its place is an error."""
    if source is None:
        return
    if target.exists() and not same_content(source, target):
        raise ConfigError("{target} exists already, and is not {source}; move it away first", target, source)
    if not target.exists():
        make_dir(target.parent)
        with source.open("rb") as file:
            copy_atomically(file, target)  # an incomplete checkpoint must never have this name
