"""A separate autoencoder ("VAE") instead of the checkpoint's own, in any of its layouts."""

import re
from pathlib import Path

from torch import Tensor

from sdbatch.errors import JobError
from sdbatch.messages import Message
from sdbatch.renderer.models import names
from sdbatch.renderer.models.detection import what_it_is
from sdbatch.renderer.models.diffusers_folder import read_part
from sdbatch.renderer.models.plan import ModelPlan, Weights
from sdbatch.renderer.weights.checkpoint import read_weights

_BEFORE = re.compile(  # what programs put before all keys
    r"^(module\.|model\.)?(first_stage_model\.|vae\.|autoencoder\.)(?=(encoder|decoder|quant|post_quant))"
)


def with_autoencoder(plan: ModelPlan, weights: Weights, vae: Path) -> Weights:
    """The model's weights with the autoencoder from `vae`.

    That is a file with the original names, with or without `first_stage_model.`, or with the names of the diffusers
    library; or a folder in diffusers format, of the autoencoder or of a whole model.

    Raises:
        JobError: it can't be read, or is no autoencoder of the model's shapes.
    """
    found = {names.vae_today(_BEFORE.sub("", key, count=1)): weight for key, weight in _read(vae).items()}
    levels = len(plan.vae.network.config["block_out_channels"])
    own: dict[str, Tensor] = {}
    for key in plan.vae.network.state_dict():
        for candidate in (names.vae_name(key, levels).removeprefix(names.VAE), key):
            if candidate in found:
                own[plan.vae.name_of(key)] = found[candidate]
                break
    if lacking := [*plan.vae.lacking(own)]:
        kind = what_it_is(found)
        said = kind if kind and not own else lacking[0]
        raise JobError("vae: the autoencoder {name} does not fit {model}: {misfits}", vae.name, plan.name, said)
    if spoilt := next((key for key, weight in own.items() if not bool(weight.isfinite().all())), ""):
        template = (
            "vae: the autoencoder {name} is damaged: {weight} contains values that are not numbers; copy it again"
        )
        raise JobError(template, vae.name, spoilt)
    return {**weights, **own}


def _read(vae: Path) -> Weights:
    if not vae.is_dir():
        return read_weights(vae, Message("vae: the autoencoder {name}", vae.name))
    try:
        return read_part(vae, "vae") if (vae / "vae").is_dir() else read_part(vae.parent, vae.name, stems_of="vae")
    except JobError as error:
        raise JobError("vae: {problem}", error) from error
