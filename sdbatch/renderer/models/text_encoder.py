"""The text encoders: OpenAI's CLIP of v1 and OpenCLIP of v2, one network with other numbers and padding."""

from typing import Any

import torch

from sdbatch.renderer.models import names
from sdbatch.renderer.models.plan import ModelPart, Weights
from sdbatch.renderer.networks.clip import ClipConfig, ClipText
from sdbatch.renderer.weights.limits import require_within_limits

HEAD_SIZE = 64  # every CLIP text encoder has heads of this size
V2_PADDING = 0  # "!": OpenCLIP pads a prompt with it, OpenAI's CLIP with its end token


def clip(weights: Weights) -> ModelPart:
    """An empty encoder of v1 (`FrozenCLIPEmbedder`), with the size of the checkpoint's tensors.

    Raises:
        LookupError, ValueError: they are no such encoder's.
    """
    vocabulary, width = weights[names.TEXT + "embeddings.token_embedding.weight"].shape
    layers = {key.split(".")[5] for key in weights if key.startswith(names.TEXT + "encoder.layers.")}
    network = clip_network(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=weights[names.TEXT + "encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=len(layers),
        num_attention_heads=max(1, width // HEAD_SIZE),
        max_position_embeddings=weights[names.TEXT + "embeddings.position_embedding.weight"].shape[0],
        hidden_act="quick_gelu",
    )
    return ModelPart(network, names.text_name)


def open_clip(weights: Weights, *, skip_last: bool) -> ModelPart:
    """The same for v2 (`FrozenOpenCLIPEmbedder`); `skip_last` leaves the last layer out (`layer: penultimate`).

    Raises:
        LookupError, ValueError: they are no such encoder's.
    """
    vocabulary, width = weights[names.OPEN_TEXT + "token_embedding.weight"].shape
    blocks = names.OPEN_TEXT + "transformer.resblocks."
    layers = {key.removeprefix(blocks).split(".")[0] for key in weights if key.startswith(blocks)}
    network = clip_network(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=weights[blocks + "0.mlp.c_fc.weight"].shape[0],
        num_hidden_layers=len(layers) - skip_last,
        num_attention_heads=max(1, width // HEAD_SIZE),
        max_position_embeddings=weights[names.OPEN_TEXT + "positional_embedding"].shape[0],
        hidden_act="gelu",
    )
    return ModelPart(network, names.open_text_name, sized_by=tuple(f"{blocks}{layer}.ln_1.bias" for layer in layers))


def clip_network(**numbers: Any) -> ClipText:
    """An empty encoder.

    Raises:
        JobError: the numbers are beyond the limits.
    """
    require_within_limits("the text encoder", numbers)
    with torch.device("meta"):
        return ClipText(ClipConfig(**numbers))
