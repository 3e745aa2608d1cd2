"""The libraries as they come; a renderer imports less (networks/library.py), and has a text encoder of its own."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from transformers import CLIPTextConfig, CLIPTextModel

from sdbatch.renderer.models.models import Model


@contextmanager
def whole_diffusers() -> Iterator[Any]:
    """A second one, beside that of the renderer; classes of the two are not the same."""
    ours = {name: sys.modules.pop(name) for name in [*sys.modules] if name.partition(".")[0] == "diffusers"}
    try:
        yield importlib.import_module("diffusers")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "diffusers"]:
            del sys.modules[name]
        sys.modules.update(ours)


def text_encoder_of(model: Model) -> Any:
    """A model's text encoder as the transformers library has it."""
    theirs = CLIPTextModel(CLIPTextConfig(**asdict(model.text_encoder.config)))
    theirs.load_state_dict(model.text_encoder.state_dict())
    return theirs
