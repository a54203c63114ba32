"""fairseq's options of a model, turned into our configuration, or refused one by one."""

from collections.abc import Mapping
from reprlib import Repr
from typing import Any

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

# Names that fairseq gives to sets of options of one and the same model.
LIGHTCONV_ARCHS = frozenset(
    f"lightconv{preset}"
    for preset in ("", "_iwslt_de_en", "_wmt_en_de", "_wmt_en_de_big", "_wmt_en_fr_big")
) | {"lightconv_wmt_zh_en_big"}
TRANSFORMER_ARCHS = frozenset(
    f"transformer{preset}"
    for preset in (
        *("", "_tiny", "_iwslt_de_en", "_wmt_en_de", "_wmt_en_de_big", "_wmt_en_de_big_t2t"),
        *("_vaswani_wmt_en_de_big", "_vaswani_wmt_en_fr_big", "_2x", "_4x"),
    )
)

# Options under which a model computes what no model of this library does.
_REFUSED = (
    "encoder_learned_pos",
    "decoder_learned_pos",
    "no_token_positional_embeddings",
    "no_enc_token_positional_embeddings",
    "no_dec_token_positional_embeddings",
    "no_scale_embedding",
    "layernorm_embedding",
    "embedding_only",
    "adaptive_input",
    "adaptive_softmax_cutoff",
    "tie_adaptive_weights",
    "tie_adaptive_proj",
    "char_inputs",
    "character_embeddings",
    "use_factorized_embedding",
    "encoder_factorized_embed_dim",
    "decoder_factorized_embed_dim",
    "merge_src_tgt_embed",
    "no_cross_attention",
    "cross_self_attention",
    "no_decoder_final_norm",
    "encoder_layers_to_keep",
    "decoder_layers_to_keep",
    "encoder_recurrent_stacking",
    "decoder_recurrent_stacking",
    "add_adapters",
    "encoder_add_adapters",
    "decoder_add_adapters",
    "encoder_xformers_att_config",
    "decoder_xformers_att_config",
    "quant_noise_pq",
    "quant_noise_scalar",
    "base_layers",
    "moe_freq",
    "scale_attn",
    "scale_fc",
    "scale_heads",
    "scale_resids",
)
# A value in a message, of bounded length whatever a file holds.
_bounded = Repr()
_bounded.maxlevel, _bounded.maxlist = 1, 8
shown = _bounded.repr
# No size of a model is larger; keeps absurd ones from being built.
_MAX_SIZE = 1 << 24


def check_kind(fields: Mapping[str, Any]) -> None:
    """Refuse what is no LightConv, DynamicConv or Transformer model for translation.

    Args:
        fields: options of model and task as fairseq names them.

    Raises:
        CheckpointError: naming model or task.
    """
    arch, task = fields.get("arch"), fields.get("task")
    if not isinstance(arch, str) or arch not in LIGHTCONV_ARCHS | TRANSFORMER_ARCHS:
        raise CheckpointError(
            f"the model is of arch {shown(arch)}; lightconv, transformer and their presets can be "
            f"imported, such as {', '.join(sorted(LIGHTCONV_ARCHS)[:3])}"
        )
    if task not in (None, "translation"):
        raise CheckpointError(
            f"the model was trained for the task {shown(task)}; only models of the task "
            f"translation can be imported"
        )
    for side in ("encoder", "decoder"):
        key = f"{side}_conv_type"
        if (key in fields) != (arch in LIGHTCONV_ARCHS):
            raise CheckpointError(
                f"arch is {shown(arch)}, but {key} is {shown(fields.get(key))}; "
                f"the checkpoint contradicts itself"
            )


def read_architecture(fields: Mapping[str, Any]) -> ModelConfig:
    """Our configuration of a fairseq LightConv, DynamicConv or Transformer model.

    Args:
        fields: options as fairseq names them (`encoder_embed_dim`, ...); what a version of fairseq
            did not have yet is as it was then.

    Raises:
        CheckpointError: for an option that this library does not have, a missing or a wrong one,
            naming it.
    """
    for option in _REFUSED:
        if fields.get(option):
            raise CheckpointError(
                f"the fairseq model was trained with {option}, which is not supported here"
            )
    if fields.get("activation_fn", "relu") != "relu":
        raise CheckpointError(
            f"the fairseq model has activation_fn={shown(fields['activation_fn'])}; "
            f"only relu is supported here"
        )
    sizes = {
        f"{side}_{what}": _size(fields, f"{side}_{what}")
        for side in ("encoder", "decoder")
        for what in ("embed_dim", "ffn_embed_dim", "attention_heads", "layers")
    }
    for end in ("input", "output"):
        dim = fields.get(f"decoder_{end}_dim", sizes["decoder_embed_dim"])
        if dim != sizes["decoder_embed_dim"]:
            raise CheckpointError(
                f"the fairseq model has decoder_{end}_dim={shown(dim)} and decoder_embed_dim="
                f"{sizes['decoder_embed_dim']}; only equal ones are supported here"
            )
    pre_norm = _flag(fields, "encoder_normalize_before")
    if _flag(fields, "decoder_normalize_before") != pre_norm:
        raise CheckpointError(
            "the fairseq model has encoder_normalize_before but not decoder_normalize_before, or "
            "the other way round; only both or none are supported here"
        )
    _check_heads(sizes)
    encoder_mixer, decoder_mixer = (
        _mixer(fields, sizes, "encoder"),
        _mixer(fields, sizes, "decoder"),
    )
    return ModelConfig(
        mixer=encoder_mixer,
        decoder_mixer=decoder_mixer if decoder_mixer != encoder_mixer else None,
        dim=sizes["encoder_embed_dim"],
        ffn_dim=sizes["encoder_ffn_embed_dim"],
        num_heads=sizes["encoder_attention_heads"],
        encoder_layers=sizes["encoder_layers"],
        decoder_layers=sizes["decoder_layers"],
        decoder_dim=_if_other(sizes, "embed_dim"),
        decoder_ffn_dim=_if_other(sizes, "ffn_embed_dim"),
        decoder_num_heads=_if_other(sizes, "attention_heads"),
        pre_norm=pre_norm,
        tying=_tying(fields, sizes),
        dropout=_probability(fields, "dropout"),
        attention_dropout=_probability(fields, "attention_dropout", 0.0),
        relu_dropout=_probability(fields, "activation_dropout", 0.0)
        or _probability(fields, "relu_dropout", 0.0),
    )


def _mixer(fields: Mapping[str, Any], sizes: Mapping[str, int], side: str) -> MixerConfig:
    if f"{side}_conv_type" not in fields:
        return AttentionConfig(attention_dropout=_probability(fields, "attention_dropout", 0.0))
    kind = fields[f"{side}_conv_type"]
    if not isinstance(kind, str) or kind not in CONV_MIXERS:
        raise CheckpointError(
            f"the fairseq model has {side}_conv_type={shown(kind)}, neither lightweight nor dynamic"
        )
    conv_dims: dict[str, int | None] = {}
    for each in ("encoder", "decoder"):
        heads, dim = sizes[f"{each}_attention_heads"], sizes[f"{each}_embed_dim"]
        conv_dim = _size(fields, f"{each}_conv_dim", dim)
        if conv_dim % heads:
            raise CheckpointError(
                f"the fairseq model has {each}_conv_dim={conv_dim}, which its {heads} "
                f"{each}_attention_heads cannot share"
            )
        conv_dims[each] = conv_dim if conv_dim != dim else None
    return CONV_MIXERS[kind](
        encoder_kernel_sizes=_widths(fields, sizes, "encoder"),
        decoder_kernel_sizes=_widths(fields, sizes, "decoder"),
        encoder_conv_dim=conv_dims["encoder"],
        decoder_conv_dim=conv_dims["decoder"],
        encoder_glu=_flag(fields, "encoder_glu"),
        decoder_glu=_flag(fields, "decoder_glu"),
        normalize=_flag(fields, "weight_softmax"),
        weight_dropout=_probability(
            fields, "weight_dropout", _probability(fields, "attention_dropout", 0.0)
        ),
        input_dropout=_probability(fields, "input_dropout", 0.1),
    )


def _widths(fields: Mapping[str, Any], sizes: Mapping[str, int], side: str) -> list[int]:
    key, layers = f"{side}_kernel_size_list", sizes[f"{side}_layers"]
    widths = fields.get(key)
    if not isinstance(widths, list | tuple) or not widths:
        raise CheckpointError(f"the fairseq model has {key}={shown(widths)}, no list of widths")
    for width in widths:
        if type(width) is not int or not 1 <= width <= _MAX_SIZE:
            raise CheckpointError(f"the fairseq model has {shown(width)} in {key}, no width")
        if side == "encoder" and width % 2 == 0:
            raise CheckpointError(
                f"the fairseq model has the even width {width} in {key}, which no encoder can have"
            )
    if len(widths) not in (1, layers):
        raise CheckpointError(
            f"the fairseq model has {len(widths)} widths in {key}, but {side}_layers={layers}"
        )
    return list(widths)


def _tying(fields: Mapping[str, Any], sizes: Mapping[str, int]) -> Tying:
    if _flag(fields, "share_all_embeddings"):
        if _if_other(sizes, "embed_dim") is not None:
            raise CheckpointError(
                "the fairseq model has share_all_embeddings, but encoder_embed_dim and "
                "decoder_embed_dim differ"
            )
        return Tying.all
    return Tying.decoder if _flag(fields, "share_decoder_input_output_embed") else Tying.none


def _check_heads(sizes: Mapping[str, int]) -> None:
    for side in ("encoder", "decoder"):
        dim, heads = sizes[f"{side}_embed_dim"], sizes[f"{side}_attention_heads"]
        if dim % heads:
            raise CheckpointError(
                f"the fairseq model has {side}_embed_dim={dim}, which its {heads} "
                f"{side}_attention_heads cannot share"
            )


def _if_other(sizes: Mapping[str, int], what: str) -> int | None:
    """The decoder's size, None where it is the encoder's."""
    size = sizes[f"decoder_{what}"]
    return size if size != sizes[f"encoder_{what}"] else None


def _size(fields: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = fields.get(key, default)
    if type(value) is not int or not 1 <= value <= _MAX_SIZE:
        raise CheckpointError(f"the fairseq model has {key}={shown(value)}, which is no size")
    return value


def _flag(fields: Mapping[str, Any], key: str) -> bool:
    value = fields.get(key)
    if type(value) not in (bool, int) or value not in (0, 1):
        raise CheckpointError(f"the fairseq model has {key}={shown(value)}, neither true nor false")
    return bool(value)


def _probability(fields: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = fields.get(key, default)
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise CheckpointError(f"the fairseq model has {key}={shown(value)}, no probability below 1")
    return float(value)
