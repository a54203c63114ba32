"""fairseq's parameters under our names: layouts from 2018 to today, checked one by one."""

import re
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from lightconv_mt.errors import CheckpointError
from lightconv_mt.interop.fairseq_architecture import check_kind, read_architecture
from lightconv_mt.interop.fairseq_checkpoint import FairseqCheckpoint
from lightconv_mt.mixers.attention import AttentionConfig
from lightconv_mt.model.transformer import ModelConfig, Seq2SeqTransformer, Tying

# Parts of a layer by their name in fairseq; "layer_norm1" and its like belong to LightConv
# encoders, "layer_norms.0" and its like to files of 2019 and before.
_ENCODER_PARTS = {
    "layer_norm1": "mixer_sublayer.norm",
    "layer_norm2": "feed_forward_sublayer.norm",
    "layer_norms.0": "mixer_sublayer.norm",
    "layer_norms.1": "feed_forward_sublayer.norm",
    "self_attn_layer_norm": "mixer_sublayer.norm",
    "final_layer_norm": "feed_forward_sublayer.norm",
}
_DECODER_PARTS = {
    "conv_layer_norm": "mixer_sublayer.norm",
    "layer_norms.0": "mixer_sublayer.norm",
    "layer_norms.1": "source_sublayer.norm",
    "layer_norms.2": "feed_forward_sublayer.norm",
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
# Bookkeeping, tables that are computed anew and, for conv_bias, memory that fairseq never
# initialises.
_IGNORED = re.compile(r"\.version$|\.conv\.conv_bias$|\.embed_positions\.(_float_tensor|weights)$")
# Which of our parameters other tensors must equal where embeddings are shared.
_COPIES = {
    Tying.none: {},
    Tying.decoder: {"output_projection": "tgt_embedding.weight"},
    Tying.all: {
        "output_projection": "src_embedding.weight",
        "tgt_embedding.weight": "src_embedding.weight",
    },
}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def import_checkpoint(
    checkpoint: FairseqCheckpoint, *, src_vocab_size: int, tgt_vocab_size: int
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Our configuration and float32 parameters of a fairseq checkpoint.

    Args:
        checkpoint: as read from its file.
        src_vocab_size: V of the source dictionary, special tokens included.
        tgt_vocab_size: V of the target dictionary.

    Raises:
        CheckpointError: whenever the model could compute anything else than it does in fairseq.
    """
    try:
        check_kind(checkpoint.fields)
        _check_tables(checkpoint.tensors)
        config = read_architecture(checkpoint.fields)
        tensors = split_attention(checkpoint.tensors)
        _check_stacks(tensors, config)
        sizes = {"src": src_vocab_size, "tgt": tgt_vocab_size}
        return config, _parameters(tensors, config, sizes, checkpoint.path.stat().st_size)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error


def parameter_name(key: str, tying: Tying) -> str | None:
    """Our name of a fairseq parameter; None for a copy of another one and what we do not have.

    Args:
        key: as in fairseq's state_dict, attention split as today.
        tying: which embeddings are one tensor.

    Raises:
        CheckpointError: for an unknown parameter.
    """
    name = _own_name(key)
    return None if name in _COPIES[tying] else name


def rename_parameters(tensors: Mapping[str, Tensor], tying: Tying) -> dict[str, Tensor]:
    """Tensors under our names; LightConv kernels (H, 1, K) become (H, K)."""
    renamed = {}
    for key, tensor in tensors.items():
        name = parameter_name(key, tying)
        if name is not None:
            renamed[name] = _without_middle(name, tensor)
    return renamed


def split_attention(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value projections apart, which files of 2019 and before hold as one.

    Args:
        tensors: `in_proj_weight` (3 C, C) and `in_proj_bias` (3 C), or `q_proj_weight` and so on
            where source and target differ in C, beside others of any name.
    """
    split = {}
    for key, tensor in tensors.items():
        head, _, last = key.rpartition(".")
        if fused := re.fullmatch(r"in_proj_(weight|bias)", last):
            if tensor.dim() == 0 or tensor.shape[0] % 3:
                raise CheckpointError(
                    f"{key} is {tuple(tensor.shape)}, no query, key and value of one size"
                )
            parts = {
                f"{head}.{part}_proj.{fused[1]}": piece
                for part, piece in zip("qkv", tensor.chunk(3), strict=True)
            }
        elif apart := re.fullmatch(r"([qkv]_proj)_weight", last):
            parts = {f"{head}.{apart[1]}.weight": tensor}
        else:
            parts = {key: tensor}
        for name, part in parts.items():
            if name in split:
                raise CheckpointError(f"{name} is there twice, once as part of {key}")
            split[name] = part
    return split


def _own_name(key: str) -> str | None:
    """Our name, whatever is tied; None for what we do not have."""
    if _IGNORED.search(key):
        return None
    if key in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        return "src_embedding.weight" if key.startswith("encoder") else "tgt_embedding.weight"
    if key in ("decoder.output_projection.weight", "decoder.embed_out"):
        return "output_projection"
    if match := re.fullmatch(r"(encoder|decoder)\.layer_norm\.(weight|bias)", key):
        return f"{match[1]}.norm.{match[2]}"
    if match := re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.conv\.weight", key, re.ASCII):
        return f"{match[1]}.layers.{match[2]}.mixer.kernel"
    layer = re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(.+)\.(weight|bias)", key, re.ASCII)
    if layer is not None:
        own_parts = _ENCODER_PARTS if layer[1] == "encoder" else _DECODER_PARTS
        part = {**_SHARED_PARTS, **own_parts}.get(layer[3])
        if part is not None:
            return f"{layer[1]}.layers.{layer[2]}.{part}.{layer[4]}"
    if key.endswith(".embed_positions.weight"):
        raise CheckpointError(
            f"{key} are learned positional embeddings, which are not supported here"
        )
    raise CheckpointError(
        f"{key} is no parameter of a LightConv, DynamicConv or Transformer model of fairseq"
    )


def _check_tables(tensors: Mapping[str, Tensor]) -> None:
    for key, tensor in tensors.items():
        strided = tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not strided or tensor.is_complex() or tensor.is_quantized:
            raise CheckpointError(f"{key} is no plain table of numbers")


def _check_stacks(tensors: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Refuse another number of layers than configured, and stacks that fairseq ends differently.

    Raises:
        CheckpointError: naming the side.
    """
    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        found = {
            int(match[1])
            for key in tensors
            if (match := re.match(rf"{side}\.layers\.(\d{{1,9}})\.", key, re.ASCII))
        }
        if len(found) != layers or found != set(range(layers)):
            raise CheckpointError(
                f"{side}_layers is {layers}, but there are parameters of {len(found)} layers"
            )
        # fairseq leaves out the last norm of older pre-norm Transformers.
        newest = {"encoder": 2, "decoder": 3}[side]
        version = tensors.get(f"{side}.version", torch.ones(1))
        known = version.numel() == 1 and bool(version >= newest)
        if config.pre_norm and isinstance(config.mixer, AttentionConfig) and not known:
            raise CheckpointError(
                f"{side}.version is below {newest}, so that fairseq, depending on its own version, "
                f"leaves out the last norm of this pre-norm model; it cannot be imported"
            )


def _parameters(
    tensors: Mapping[str, Tensor], config: ModelConfig, sizes: Mapping[str, int], num_bytes: int
) -> dict[str, Tensor]:
    """Every parameter of the model as float32, each checked against the configuration."""
    sources: dict[str, list[str]] = defaultdict(list)
    for key in tensors:
        if (name := _own_name(key)) is not None:
            sources[name].append(key)
    for keys in sources.values():
        if len(keys) > 1:
            raise CheckpointError(f"{' and '.join(keys)} are two tensors of one parameter")
    found = {name: _without_middle(name, tensors[key]) for name, (key,) in sources.items()}
    _check_vocabularies(found, config.tying, sizes)
    copies = {copy: name for copy, name in _COPIES[config.tying].items() if copy in found}
    expected = _expected_shapes(config, sizes)
    missing = sorted(expected.keys() - found.keys())
    unknown = sorted(found.keys() - expected.keys() - copies.keys())
    if missing or unknown:
        named = ", ".join(sources[name][0] for name in unknown[:3])
        raise CheckpointError(
            f"{len(missing)} parameters are missing ({', '.join(missing[:3])}, as called here) and "
            f"{len(unknown)} do not belong to such a model ({named})"
        )
    for name, shape in [*expected.items(), *((copy, expected[copies[copy]]) for copy in copies)]:
        if found[name].shape != shape:
            raise CheckpointError(
                f"{sources[name][0]} is {tuple(found[name].shape)}, but the options of the model "
                f"make it {tuple(shape)}"
            )
    if sum(found[name].numel() * found[name].element_size() for name in expected) > num_bytes:
        raise CheckpointError("the parameters claim to be larger than the file that holds them")
    numbers = {name: _numbers(found[name], sources[name][0]) for name in [*expected, *copies]}
    for copy, name in copies.items():
        if not torch.equal(numbers[copy], numbers[name]):
            raise CheckpointError(
                f"{sources[copy][0]} and {sources[name][0]} differ, though the options of the "
                f"model make them one"
            )
    return {name: numbers[name] for name in expected}


def _check_vocabularies(
    found: Mapping[str, Tensor], tying: Tying, sizes: Mapping[str, int]
) -> None:
    if tying is Tying.all and sizes["src"] != sizes["tgt"]:
        raise CheckpointError(
            f"the model shares all embeddings, but dict_src has {sizes['src']} tokens and dict_tgt "
            f"{sizes['tgt']}; give the dictionaries it was trained with"
        )
    for side, size in sizes.items():
        table = found.get(f"{side}_embedding.weight")
        if table is not None and table.dim() == 2 and table.shape[0] != size:
            raise CheckpointError(
                f"dict_{side} has {size} tokens, the 4 special ones included, but the model "
                f"{table.shape[0]}; give the dictionary it was trained with"
            )


def _expected_shapes(config: ModelConfig, sizes: Mapping[str, int]) -> dict[str, torch.Size]:
    with torch.device("meta"):
        model = Seq2SeqTransformer(
            config,
            src_vocab_size=sizes["src"],
            tgt_vocab_size=sizes["tgt"],
            src_pad_id=0,
            tgt_pad_id=0,
        )
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def _without_middle(name: str, tensor: Tensor) -> Tensor:
    """LightConv kernels (H, 1, K) as (H, K), which some files have; other tensors as they are."""
    kernel = name.endswith(".mixer.kernel") and tensor.dim() == 3 and tensor.shape[1] == 1
    return tensor.squeeze(1) if kernel else tensor


def _numbers(tensor: Tensor, key: str) -> Tensor:
    """A float32 copy.

    Raises:
        CheckpointError: when its numbers are of another kind, or not finite.
    """
    if tensor.dtype not in _FLOATS:
        raise CheckpointError(f"{key} is of {tensor.dtype}, no real numbers")
    numbers = tensor.detach().to(torch.float32, copy=True).contiguous()
    if not numbers.isfinite().all():
        raise CheckpointError(f"{key} holds numbers that are not finite; the model is of no use")
    return numbers
