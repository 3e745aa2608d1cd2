"""How the networks are called: on tensors alone, so that others can do it for them (see renderer/tuning/)."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

CALLS: Mapping[str, Callable[..., Tensor]] = {
    "unet": lambda unet, x, timesteps, context: unet(x, timesteps, encoder_hidden_states=context, return_dict=False)[0],
    "decoder": lambda vae, latents: vae.decode(latents, return_dict=False)[0],
}


def run(kind: str, network: Any, *inputs: Tensor) -> Tensor:
    """A network on some rows, as it is."""
    return CALLS[kind](network, *inputs)
