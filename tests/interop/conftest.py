"""Small models written down as fairseq does, in every layout there was."""

import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightconv_mt.interop.fairseq_architecture import read_architecture
from lightconv_mt.model.transformer import Seq2SeqTransformer

TOKENS = 8  # of the dictionaries, special ones included
SIZES = {
    f"{side}_{key}": value
    for side in ("encoder", "decoder")
    for key, value in (
        *(("embed_dim", 12), ("ffn_embed_dim", 20), ("attention_heads", 3), ("layers", 2)),
        *(("normalize_before", False), ("learned_pos", False)),
    )
}
COMMON = {
    **SIZES,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "share_all_embeddings": True,
    "share_decoder_input_output_embed": True,
    "no_token_positional_embeddings": False,
    "adaptive_softmax_cutoff": None,
    "task": "translation",
    "source_lang": "de",
    "target_lang": "en",
    "data": ["data-bin/tiny"],
}
CONV = {
    **COMMON,
    "arch": "lightconv_iwslt_de_en",
    "encoder_kernel_size_list": [3, 5],
    "decoder_kernel_size_list": [3],
    "encoder_glu": True,
    "decoder_glu": False,
    "weight_softmax": True,
    "weight_dropout": 0.1,
    "input_dropout": 0.0,
    "relu_dropout": 0.0,
}
KINDS = {
    "lightconv": {**CONV, "encoder_conv_type": "lightweight", "decoder_conv_type": "lightweight"},
    "dynamicconv": {**CONV, "encoder_conv_type": "dynamic", "decoder_conv_type": "dynamic"},
    "mixed": {**CONV, "encoder_conv_type": "dynamic", "decoder_conv_type": "lightweight"},
    "transformer": {**COMMON, "arch": "transformer_iwslt_de_en", "activation_fn": "relu"},
}

# Our names of a layer's parts -> fairseq's today, for both sides or (encoder, decoder).
PARTS: dict[str, str | tuple[str, str]] = {
    "mixer.input_projection": "linear1",
    "mixer.kernel_predictor": "conv.weight_linear",
    "mixer.query": "self_attn.q_proj",
    "mixer.key": "self_attn.k_proj",
    "mixer.value": "self_attn.v_proj",
    "source_attention.query": "encoder_attn.q_proj",
    "source_attention.key": "encoder_attn.k_proj",
    "source_attention.value": "encoder_attn.v_proj",
    "source_attention.output_projection": "encoder_attn.out_proj",
    "source_sublayer.norm": "encoder_attn_layer_norm",
    "feed_forward.inner": "fc1",
    "feed_forward.outer": "fc2",
}
CONV_PARTS: dict[str, str | tuple[str, str]] = {
    "mixer.output_projection": "linear2",
    "mixer_sublayer.norm": ("layer_norm1", "conv_layer_norm"),
    "feed_forward_sublayer.norm": ("layer_norm2", "final_layer_norm"),
}
ATTENTION_PARTS: dict[str, str | tuple[str, str]] = {
    "mixer.output_projection": "self_attn.out_proj",
    "mixer_sublayer.norm": "self_attn_layer_norm",
    "feed_forward_sublayer.norm": "final_layer_norm",
}


def model_of(fields: dict[str, Any]) -> Seq2SeqTransformer:
    """A model of these options, every parameter random, norms too."""
    model = Seq2SeqTransformer(
        read_architecture(fields),
        src_vocab_size=TOKENS,
        tgt_vocab_size=TOKENS,
        src_pad_id=1,
        tgt_pad_id=1,
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def todays_tensors(model: Seq2SeqTransformer, fields: dict[str, Any]) -> dict[str, Tensor]:
    """The model's parameters as fairseq saves them today, copies and leftovers included."""
    conv = "encoder_conv_type" in fields
    parts = {**PARTS, **(CONV_PARTS if conv else ATTENTION_PARTS)}
    version = 2.0 if conv else 3.0
    tensors = {
        "encoder.version": torch.tensor([version]),
        "encoder.embed_tokens.weight": model.src_embedding.weight,
        "decoder.version": torch.tensor([version]),
        "decoder.embed_tokens.weight": model.tgt_embedding.weight,
        "decoder.output_projection.weight": model.output_weight,
    }
    for name, parameter in model.named_parameters():
        if match := re.fullmatch(r"(encoder|decoder)\.norm\.(\w+)", name):
            tensors[f"{match[1]}.layer_norm.{match[2]}"] = parameter
        elif match := re.fullmatch(r"((encoder|decoder)\.layers\.\d)\.mixer\.kernel", name):
            tensors[f"{match[1]}.conv.weight"] = parameter[:, None]
        elif match := re.fullmatch(r"((encoder|decoder)\.layers\.\d)\.(.+)\.(\w+)", name):
            part = parts[match[3]]
            theirs = part if isinstance(part, str) else part[match[2] == "decoder"]
            tensors[f"{match[1]}.{theirs}.{match[4]}"] = parameter
            if theirs == "conv.weight_linear":
                garbage = torch.full((1, 1, parameter.shape[1]), float("nan"))
                tensors[f"{match[1]}.conv.conv_bias"] = garbage
    return {key: tensor.detach().clone() for key, tensor in tensors.items()}


def tensors_of_2019(tensors: dict[str, Tensor], fields: dict[str, Any]) -> dict[str, Tensor]:
    """The same in the layout of the published models."""
    old = {
        "encoder.embed_positions._float_tensor": torch.ones(1),
        "decoder.embed_positions._float_tensor": torch.ones(1),
    }
    for key, tensor in tensors.items():
        if key == "decoder.output_projection.weight":
            if not fields["share_decoder_input_output_embed"]:
                old["decoder.embed_out"] = tensor
        elif match := re.fullmatch(r"(.+attn)\.q_proj\.(\w+)", key):
            fused = [tensors[f"{match[1]}.{part}_proj.{match[2]}"] for part in "qkv"]
            old[f"{match[1]}.in_proj_{match[2]}"] = torch.cat(fused)
        elif not re.search(r"\.([kv]_proj\.\w+|conv_bias)$", key):
            if "encoder_conv_type" in fields:
                key = re.sub(r"\.layer_norm(\d)\.", lambda m: f".layer_norms.{int(m[1]) - 1}.", key)
            old[key] = tensor
    return old


@pytest.fixture
def fields() -> dict[str, Any]:
    """Options of a LightConv model with one table for all embeddings."""
    return dict(KINDS["lightconv"])


@pytest.fixture
def tensors(fields: dict[str, Any]) -> dict[str, Tensor]:
    """Its parameters as saved today."""
    return todays_tensors(model_of(fields), fields)


@pytest.fixture
def state(fields: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The whole content of its checkpoint in the layout of the published models."""
    return {
        "args": Namespace(**fields),
        "model": tensors_of_2019(tensors, fields),
        "optimizer_history": [{"criterion_name": "X", "num_updates": 12}],
        "last_optimizer_state": {"state": {}, "param_groups": []},
        "extra_state": {"val_loss": 1.5},
    }


@pytest.fixture
def dictionary(tmp_path: Path) -> Callable[..., str]:
    """Writes a dictionary file, returns its path."""

    def write(name: str = "dict.txt", text: str = "ba 9\nde@@ 5\nfi 3\n. 1\n") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write
