"""The encoder in C++ against the one it is defined by: mixers, types, lengths, batch mates."""

from collections.abc import Callable
from math import nan
from typing import Any

import pytest
import torch
from cpp_kernels import need_library
from odd_models import build_model, sources_of
from rounded_products import bf16_product, int8_product, put
from torch import Tensor, nn

from lightconv_mt.mixers import MIXERS
from lightconv_mt.model.native_encoder import NativeEncoder, unsupported_encoder
from lightconv_mt.model.transformer import Seq2SeqTransformer, Tying
from lightconv_mt.ops import encode

CONV = {"encoder_kernel_sizes": [1, 6, 21], "decoder_kernel_sizes": [3]}
MODELS: dict[str, dict[str, Any]] = {
    "lightconv": {**CONV, "num_heads": 3},
    "dynamicconv": {**CONV, "num_heads": 3, "encoder_conv_dim": 33},
    "depthwise": {**CONV, "encoder_glu": False},
    "attention": {},
}
# One row, blocks of rows and not, vectors of keys and not, kernels that no sentence fills.
LENGTHS = [33, 1, 17, 2, 16, 15, 3]


def build(
    name: str, *, pre_norm: bool = False, dim: int = 30, layers: int = 3, **fields: Any
) -> Seq2SeqTransformer:
    mixer = MIXERS[name](**{**MODELS.get(name, {}), **fields})
    sizes = {"dim": dim, "decoder_dim": 24, "tying": Tying.decoder, "encoder_layers": layers}
    return build_model(mixer, pre_norm=pre_norm, **sizes)


def compare(model: Seq2SeqTransformer, encoder: NativeEncoder, lengths: list[int]) -> float:
    """The largest difference at real tokens, of outputs and of what the decoder reads."""
    src, mask = sources_of(lengths)
    expected, found = model.encode(src, mask), encoder.encode(src, mask)
    worst = [(found - expected)[mask].abs().max()]
    sources = encoder.keys(src, mask)
    assert sources.lengths.tolist() == lengths
    for layer, keys, values in zip(model.decoder.layers, sources.keys, sources.values, strict=True):
        attention = layer.source_attention
        keys, values = keys.transpose(1, 2)[:, : src.shape[1]], values[:, : src.shape[1]]
        worst += [
            (keys - attention.key(expected))[mask].abs().max(),
            (values - attention.value(expected))[mask].abs().max(),
        ]
    assert not torch.stack(worst).isnan().any()
    return float(max(worst))


@pytest.mark.parametrize("march", ["native", "x86-64", "x86-64-v3"])
@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_it_equals_the_definition(
    name: str, pre_norm: bool, march: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = need_library(march)
    monkeypatch.setattr(encode, "load_library", lambda: library)
    model = build(name, pre_norm=pre_norm)
    encoder = NativeEncoder(model, torch.float32)
    for lengths in (LENGTHS, [1], [40] * 7):
        assert compare(model, encoder, lengths) < 2e-5


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("attention", {"encoder_windows": [1, 4, 37], "decoder_windows": [3]}),
        ("attention", {"num_heads": 1, "dim": 70, "layers": 1}),
        ("lightconv", {"normalize": False, "encoder_kernel_sizes": [255, 2, 64]}),
        ("dynamicconv", {"normalize": False, "encoder_conv_dim": None, "encoder_glu": False}),
        ("dynamicconv", {"encoder_kernel_sizes": [255, 2, 64]}),
        ("lightconv", {"num_heads": 1, "dim": 80}),
    ],
)
@torch.inference_mode()
def test_options_of_mixers(name: str, fields: dict[str, Any]) -> None:
    need_library()
    model = build(name, **fields)
    assert compare(model, NativeEncoder(model, torch.float32), LENGTHS) < 2e-5


@torch.inference_mode()
def test_windows_in_long_sources() -> None:
    need_library()
    fields = {"encoder_windows": [5, 34, 200], "decoder_windows": [3]}
    model = build("attention", **fields)
    assert compare(model, NativeEncoder(model, torch.float32), [300, 130]) < 2e-5


def rounded(model: Seq2SeqTransformer, linear: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Put another product of inputs and weights into every matrix that encodes."""
    modules = [
        *model.encoder.modules(),
        *(getattr(layer.source_attention, name) for layer in model.decoder.layers
          for name in ("key", "value")),
    ]  # fmt: skip
    for module in modules:
        if isinstance(module, nn.Linear):
            put(module, linear)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("dtype", "product", "tolerance"),
    [(torch.bfloat16, bf16_product, 0.005), (torch.int8, int8_product, 0.015)],
)
@torch.inference_mode()
def test_low_precision_is_what_it_says(
    name: str, dtype: torch.dtype, product: Callable[[Tensor, Tensor], Tensor], tolerance: float
) -> None:
    need_library()
    model = build(name, layers=1, **({} if name == "attention" else {"encoder_kernel_sizes": [6]}))
    encoder = NativeEncoder(model, dtype)
    far = compare(model, encoder, LENGTHS)
    rounded(model, product)
    # A sum that rounds the other way moves what follows by a unit of the last place.
    near = compare(model, encoder, LENGTHS)
    assert near < tolerance < far


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("name", [*MODELS, "window"])
@torch.inference_mode()
def test_no_bit_depends_on_batch_mates_padding_or_threads(name: str, dtype: torch.dtype) -> None:
    need_library()
    windows = {"encoder_windows": [3, 9, 40], "decoder_windows": [3]}
    model = build("attention", **windows) if name == "window" else build(name)
    encoder = NativeEncoder(model, dtype)
    src, mask = sources_of(LENGTHS * 3)
    threads = torch.get_num_threads()
    together = encoder.encode(src, mask)
    keys = encoder.keys(src, mask)
    try:
        torch.set_num_threads(3)
        for one, other in ((together, encoder.encode(src, mask)),):
            assert torch.equal(one[mask], other[mask])
    finally:
        torch.set_num_threads(threads)
    for row, length in enumerate(LENGTHS * 3):
        alone = src[row : row + 1, :length]
        own = torch.ones_like(alone, dtype=torch.bool)
        assert torch.equal(encoder.encode(alone, own)[0], together[row, :length])
        found = encoder.keys(alone, own)
        for layer in range(2):
            assert torch.equal(found.keys[layer][0, :, :length], keys.keys[layer][row, :, :length])
            assert torch.equal(found.values[layer][0, :length], keys.values[layer][row, :length])


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_nan_stays_in_its_sentence(name: str) -> None:
    need_library()
    model = build(name)
    model.src_embedding.weight.data[5, 7] = nan
    src, mask = sources_of([9, 9, 9])
    src[src == 5], src[1, 3] = 6, 5
    encoded = NativeEncoder(model, torch.float32).encode(src, mask)
    assert encoded.isnan().any(2).any(1).tolist() == [False, True, False]


def test_repeated_sources_are_those_of_each() -> None:
    need_library()
    encoder = NativeEncoder(build("lightconv"), torch.float32)
    src, mask = sources_of([4, 7])
    found, expected = encoder.keys(src, mask).repeat(2), encoder.keys(src, mask)
    assert found.lengths.tolist() == [4, 4, 7, 7]
    for ours, theirs in zip(found.values, expected.values, strict=True):
        assert torch.equal(ours[[0, 2], :4], theirs[:, :4])
        assert torch.equal(ours[[1, 3], :4], theirs[:, :4])


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("conv", {}, "ConvMixer"),
        ("kernel_attention", CONV, "KernelAttentionMixer"),
        ("dynamicconv", {"renormalize_edges": True}, "renormalised"),
    ],
)
def test_what_it_cannot_run_is_named(name: str, fields: dict[str, Any], reason: str) -> None:
    assert reason in (unsupported_encoder(build(name, **fields)) or "")
    assert unsupported_encoder(build("lightconv")) is None
