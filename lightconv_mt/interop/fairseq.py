"""fairseq's architecture fields and parameter names, turned into ours."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightconv_mt.errors import CheckpointError
from lightconv_mt.mixers.attention import AttentionConfig
from lightconv_mt.mixers.base import MixerConfig
from lightconv_mt.mixers.dynamicconv import DynamicConvConfig
from lightconv_mt.mixers.lightconv import LightConvConfig
from lightconv_mt.model.transformer import ModelConfig, Tying

CONV_MIXERS: dict[str, type[LightConvConfig] | type[DynamicConvConfig]] = {
    "lightweight": LightConvConfig,
    "dynamic": DynamicConvConfig,
}

# Parts of a layer by their name in fairseq; "layer_norm1" and its like belong to LightConv
# encoders.
_ENCODER_PARTS = {
    "layer_norm1": "mixer_sublayer.norm",
    "layer_norm2": "feed_forward_sublayer.norm",
    "self_attn_layer_norm": "mixer_sublayer.norm",
    "final_layer_norm": "feed_forward_sublayer.norm",
}
_DECODER_PARTS = {
    "conv_layer_norm": "mixer_sublayer.norm",
    "self_attn_layer_norm": "mixer_sublayer.norm",
    "encoder_attn_layer_norm": "source_sublayer.norm",
    "final_layer_norm": "feed_forward_sublayer.norm",
}
_SHARED_PARTS = {
    "linear1": "mixer.input_projection",
    "linear2": "mixer.output_projection",
    "conv.weight_linear": "mixer.kernel_predictor",
    "fc1": "feed_forward.inner",
    "fc2": "feed_forward.outer",
    **{
        f"self_attn.{short}_proj": f"mixer.{long}"
        for short, long in (("q", "query"), ("k", "key"), ("v", "value"))
    },
    **{
        f"encoder_attn.{short}_proj": f"source_attention.{long}"
        for short, long in (("q", "query"), ("k", "key"), ("v", "value"))
    },
    "self_attn.out_proj": "mixer.output_projection",
    "encoder_attn.out_proj": "source_attention.output_projection",
}
# Bookkeeping and, for conv_bias, memory that fairseq never initialises.
_IGNORED = re.compile(r"\.version$|\.conv\.conv_bias$|\._float_tensor$")


def read_architecture(fields: Mapping[str, Any]) -> ModelConfig:
    """Our configuration of a fairseq LightConv, DynamicConv or Transformer model.

    Args:
        fields: architecture fields as fairseq names them (`encoder_embed_dim`, ...).

    Raises:
        CheckpointError: for an option this library does not have, naming it.
    """
    for option in (
        "encoder_learned_pos",
        "decoder_learned_pos",
        "no_token_positional_embeddings",
        "adaptive_softmax_cutoff",
    ):
        if fields.get(option):
            raise CheckpointError(
                f"the fairseq model was trained with {option}, which is not supported here"
            )
    encoder_mixer, decoder_mixer = _mixer(fields, "encoder"), _mixer(fields, "decoder")
    return ModelConfig(
        mixer=encoder_mixer,
        decoder_mixer=decoder_mixer,
        dim=fields["encoder_embed_dim"],
        ffn_dim=fields["encoder_ffn_embed_dim"],
        num_heads=fields["encoder_attention_heads"],
        encoder_layers=fields["encoder_layers"],
        decoder_layers=fields["decoder_layers"],
        decoder_dim=fields["decoder_embed_dim"],
        decoder_ffn_dim=fields["decoder_ffn_embed_dim"],
        decoder_num_heads=fields["decoder_attention_heads"],
        pre_norm=bool(fields["encoder_normalize_before"]),
        tying=_tying(fields),
        dropout=fields["dropout"],
        attention_dropout=fields["attention_dropout"],
        relu_dropout=fields.get("relu_dropout", fields.get("activation_dropout", 0.0)),
    )


def parameter_name(key: str, tying: Tying) -> str | None:
    """Our name of a fairseq parameter; None for a copy of another one and what we do not have.

    Args:
        key: as in fairseq's state_dict today (not the layout of 2019).
        tying: which embeddings are one tensor.

    Raises:
        CheckpointError: for an unknown parameter.
    """
    if _IGNORED.search(key):
        return None
    if key == "encoder.embed_tokens.weight":
        return "src_embedding.weight"
    if key == "decoder.embed_tokens.weight":
        return None if tying is Tying.all else "tgt_embedding.weight"
    if key == "decoder.output_projection.weight":
        return "output_projection" if tying is Tying.none else None
    if match := re.fullmatch(r"(encoder|decoder)\.layer_norm\.(weight|bias)", key):
        return f"{match[1]}.norm.{match[2]}"
    if match := re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.conv\.weight", key):
        return f"{match[1]}.layers.{match[2]}.mixer.kernel"
    if match := re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(.+)\.(weight|bias)", key):
        own_parts = _ENCODER_PARTS if match[1] == "encoder" else _DECODER_PARTS
        part = {**_SHARED_PARTS, **own_parts}.get(match[3])
        if part is not None:
            return f"{match[1]}.layers.{match[2]}.{part}.{match[4]}"
    raise CheckpointError(
        f"{key} is no parameter of a LightConv, DynamicConv or Transformer model of fairseq"
    )


def rename_parameters(tensors: Mapping[str, Tensor], tying: Tying) -> dict[str, Tensor]:
    """Tensors under our names; LightConv kernels (H, 1, K) become (H, K)."""
    renamed = {}
    for key, tensor in tensors.items():
        name = parameter_name(key, tying)
        if name is not None:
            renamed[name] = tensor.flatten(1) if name.endswith("mixer.kernel") else tensor
    return renamed


def _mixer(fields: Mapping[str, Any], side: str) -> MixerConfig:
    if f"{side}_conv_type" not in fields:
        return AttentionConfig(attention_dropout=fields["attention_dropout"])
    config_class = CONV_MIXERS[fields[f"{side}_conv_type"]]
    return config_class(
        encoder_kernel_sizes=list(fields["encoder_kernel_size_list"]),
        decoder_kernel_sizes=list(fields["decoder_kernel_size_list"]),
        encoder_conv_dim=fields["encoder_conv_dim"],
        decoder_conv_dim=fields["decoder_conv_dim"],
        encoder_glu=bool(fields["encoder_glu"]),
        decoder_glu=bool(fields["decoder_glu"]),
        normalize=bool(fields["weight_softmax"]),
        weight_dropout=fields["weight_dropout"],
        input_dropout=fields["input_dropout"],
    )


def _tying(fields: Mapping[str, Any]) -> Tying:
    if fields["share_all_embeddings"]:
        return Tying.all
    return Tying.decoder if fields["share_decoder_input_output_embed"] else Tying.none
