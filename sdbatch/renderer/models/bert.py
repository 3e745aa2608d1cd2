"""The text encoder of the LAION-400M model (`BERTEmbedder`): 32 layers of their own over BERT's words.

The vocabulary is that of Google's bert-base-uncased, the network the diffusers library's.
"""

import re
from typing import Any

import torch

from sdbatch.renderer.models.plan import ModelPart, Weights
from sdbatch.renderer.models.text_encoder import HEAD_SIZE
from sdbatch.renderer.weights.limits import require_within_limits

PREFIX = "cond_stage_model.transformer."

_TOP = {
    "embed_tokens": "token_emb",
    "embed_positions": "pos_emb.emb",
    "layer_norm": "norm",
}
# The original counts attention (even) and feed-forward network (odd) as separate layers.
_EVEN = {
    "self_attn_layer_norm": "0",
    "self_attn.q_proj": "1.to_q",
    "self_attn.k_proj": "1.to_k",
    "self_attn.v_proj": "1.to_v",
    "self_attn.out_proj": "1.to_out",
}
_ODD = {
    "final_layer_norm": "0",
    "fc1": "1.net.0.0",
    "fc2": "1.net.2",
}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)\.(weight|bias)")


def bert_name(key: str) -> str:
    """The original key of an `LDMBertEncoder` weight."""
    match = _LAYER.fullmatch(key)
    if not match:
        part, _, kind = key.rpartition(".")
        return f"{PREFIX}{_TOP[part]}.{kind}"
    number, part = 2 * int(match[1]), match[2]
    where = f"{number}.{_EVEN[part]}" if part in _EVEN else f"{number + 1}.{_ODD[part]}"
    return f"{PREFIX}attn_layers.layers.{where}.{match[3]}"


def bert(weights: Weights) -> ModelPart:
    """An unfilled encoder, sized by the checkpoint's own tensors.

    Raises:
        LookupError, ValueError: they are no such encoder's.
    """
    vocabulary, width = weights[f"{PREFIX}token_emb.weight"].shape
    layers = {key.split(".")[4] for key in weights if key.startswith(f"{PREFIX}attn_layers.layers.")}
    network = bert_network(
        vocab_size=vocabulary,
        d_model=width,
        encoder_layers=len(layers) // 2,
        encoder_ffn_dim=weights[f"{PREFIX}attn_layers.layers.1.1.net.0.0.weight"].shape[0],
        encoder_attention_heads=max(1, weights[f"{PREFIX}attn_layers.layers.0.1.to_q.weight"].shape[0] // HEAD_SIZE),
        max_position_embeddings=weights[f"{PREFIX}pos_emb.emb.weight"].shape[0],
    )
    return ModelPart(network, bert_name)


def bert_network(**numbers: Any) -> Any:
    """An unfilled `LDMBertEncoder`.

    Raises:
        JobError: the numbers are beyond the limits.
    """
    require_within_limits("the text encoder", numbers)
    # Seconds of imports that no other model needs.
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (  # noqa: PLC0415
        LDMBertConfig,
        LDMBertEncoder,
    )

    with torch.device("meta"):
        return LDMBertEncoder(LDMBertConfig(head_dim=HEAD_SIZE, **numbers))
