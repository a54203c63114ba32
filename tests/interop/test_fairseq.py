"""Parameters of every layout and option come out as those of the model they were made of."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightconv_mt.errors import CheckpointError
from lightconv_mt.interop.fairseq import import_checkpoint, split_attention
from lightconv_mt.interop.fairseq_checkpoint import read_checkpoint
from lightconv_mt.train.checkpoint import model_tensors
from tests.interop.conftest import KINDS, TOKENS, model_of, tensors_of_2019, todays_tensors

LAYOUTS = {
    "today": lambda tensors, fields: tensors,
    "2019": tensors_of_2019,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "tied": {},
    "decoder tied": {"share_all_embeddings": False},
    "untied": {"share_all_embeddings": False, "share_decoder_input_output_embed": False},
    "pre-norm": {"encoder_normalize_before": True, "decoder_normalize_before": True},
}


def imported(folder: Path, fields: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    path = folder / "checkpoint.pt"
    torch.save({"args": Namespace(**fields), "model": tensors}, path)
    sizes = {"src_vocab_size": TOKENS, "tgt_vocab_size": TOKENS}
    return import_checkpoint(read_checkpoint(path), **sizes)[1]


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) and ours[name].dtype is torch.float32 for name in ours
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_finds_its_place(
    kind: str, options: str, layout: str, tmp_path: Path
) -> None:
    fields = {**KINDS[kind], **OPTIONS[options]}
    model = model_of(fields)
    tensors = LAYOUTS[layout](todays_tensors(model, fields), fields)
    assert same(imported(tmp_path, fields, tensors), model_tensors(model))


def test_a_transformers_decoder_may_be_of_another_size(tmp_path: Path) -> None:
    fields = {
        **KINDS["transformer"],
        **OPTIONS["untied"],
        "decoder_embed_dim": 8,
        "decoder_ffn_embed_dim": 10,
        "decoder_attention_heads": 2,
        "decoder_layers": 1,
    }
    model = model_of(fields)
    tensors = todays_tensors(model, fields)
    assert same(imported(tmp_path, fields, tensors), model_tensors(model))
    # In 2019 such projections were apart already, their biases were not.
    old = {}
    for key, tensor in tensors.items():
        head, _, last = key.rpartition(".encoder_attn.")
        if last in ("q_proj.weight", "k_proj.weight", "v_proj.weight"):
            old[f"{head}.encoder_attn.{last.replace('.', '_')}"] = tensor
        elif last == "q_proj.bias":
            biases = [tensors[f"{head}.encoder_attn.{part}_proj.bias"] for part in "qkv"]
            old[f"{head}.encoder_attn.in_proj_bias"] = torch.cat(biases)
        elif last not in ("k_proj.bias", "v_proj.bias"):
            old[key] = tensor
    assert same(imported(tmp_path, fields, old), model_tensors(model))


def test_norms_of_a_transformer_of_2018_had_numbers(tmp_path: Path) -> None:
    fields = KINDS["transformer"]
    model = model_of(fields)
    numbers = {
        "encoder": ("self_attn_layer_norm", "final_layer_norm"),
        "decoder": ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
    }
    old = {}
    for key, tensor in todays_tensors(model, fields).items():
        for number, norm in enumerate(numbers[key.partition(".")[0]]):
            key = key.replace(f".{norm}.", f".layer_norms.{number}.")
        old[key] = tensor
    old["encoder.embed_positions.weights"] = torch.randn(1024, 12)
    assert same(imported(tmp_path, fields, old), model_tensors(model))


def test_kernels_may_lack_their_middle(
    tmp_path: Path, fields: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    whole = imported(tmp_path, fields, tensors)
    flat = {
        key: tensor.squeeze(1) if key.endswith("conv.weight") else tensor
        for key, tensor in tensors.items()
    }
    assert flat["encoder.layers.0.conv.weight"].shape == (3, 3)
    assert same(imported(tmp_path, fields, flat), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(
    dtype: torch.dtype, tmp_path: Path, fields: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    lowered = {key: tensor.to(dtype) for key, tensor in tensors.items()}
    expected = imported(tmp_path, fields, {key: tensor.float() for key, tensor in lowered.items()})
    assert same(imported(tmp_path, fields, lowered), expected)


def test_nothing_is_kept_open_or_shared(
    tmp_path: Path, fields: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    parameters = imported(tmp_path, fields, tensors)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    for parameter in parameters.values():
        parameter.zero_()
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("encoder", "decoder", "complaint"),
    [
        (3.0, 3.0, None),
        (2.0, 3.0, None),
        (1.0, 3.0, "encoder.version is below 2"),
        (3.0, 2.0, "decoder.version is below 3"),
        (None, 3.0, "encoder.version is below 2"),
        (float("nan"), 3.0, "encoder.version is below 2"),
    ],
)
def test_last_norms_that_fairseq_may_leave_out_are_refused(
    encoder: float | None, decoder: float, complaint: str | None, tmp_path: Path
) -> None:
    fields = {**KINDS["transformer"], **OPTIONS["pre-norm"]}
    tensors = todays_tensors(model_of(fields), fields)
    tensors["decoder.version"] = torch.tensor([decoder])
    del tensors["encoder.version"]
    if encoder is not None:
        tensors["encoder.version"] = torch.tensor([encoder])
    if complaint is None:
        imported(tmp_path, fields, tensors)
        return
    with pytest.raises(CheckpointError, match=complaint):
        imported(tmp_path, fields, tensors)
    # Without those norms the number says nothing.
    post_norm = {**fields, "encoder_normalize_before": False, "decoder_normalize_before": False}
    without = {k: v for k, v in tensors.items() if k.split(".")[1] != "layer_norm"}
    imported(tmp_path, post_norm, without)


def test_a_lightconv_decoder_of_another_size_than_its_encoder_is_refused(tmp_path: Path) -> None:
    fields = {**KINDS["lightconv"], **OPTIONS["untied"], "decoder_embed_dim": 9}
    tensors = todays_tensors(model_of(fields), fields)
    for key in list(tensors):
        if key.endswith(("encoder_attn.k_proj.weight", "encoder_attn.v_proj.weight")):
            tensors[key] = tensors[key][:, :9].clone()  # fairseq builds it so, and cannot run it
    with pytest.raises(CheckpointError, match=r"k_proj\.weight is \(9, 9\), but .* \(9, 12\)"):
        imported(tmp_path, fields, tensors)


def test_fused_projections_are_cut_in_three() -> None:
    fused = {"a.in_proj_weight": torch.arange(12.0).view(6, 2), "a.in_proj_bias": torch.arange(6.0)}
    split = split_attention(fused)
    assert sorted(split) == [
        f"a.{part}_proj.{kind}" for part in "kqv" for kind in ("bias", "weight")
    ]
    assert split["a.k_proj.bias"].tolist() == [2.0, 3.0]
    for broken in (torch.ones(7, 2), torch.tensor(1.0)):
        with pytest.raises(CheckpointError, match="no query, key and value of one size"):
            split_attention({"a.in_proj_weight": broken})
    with pytest.raises(CheckpointError, match="is there twice"):
        split_attention({**fused, "a.q_proj.weight": torch.ones(2, 2)})
