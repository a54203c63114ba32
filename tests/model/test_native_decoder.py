"""The decoder in C++ against the one it is defined by: mixers, types, any order of rows."""

from collections.abc import Callable
from math import inf, nan
from typing import Any

import pytest
import torch
from cpp_kernels import need_library
from odd_models import MODELS, VOCAB, build, encoded
from rounded_products import bf16_product, int8_product, put
from torch import Tensor, nn

from lightconv_mt.model.native_decoder import NativeDecoder, unsupported
from lightconv_mt.model.transformer import Seq2SeqTransformer
from lightconv_mt.ops import decoder_step

BEAM, STEPS = 3, 40


def compare(
    model: Seq2SeqTransformer, decoder: NativeDecoder, lengths: tuple[int, int, int] = (19, 15, 3)
) -> float:
    """The largest difference of logits, with rows of a beam shuffled and sentences leaving."""
    generator = torch.Generator().manual_seed(1)
    worst = 0.0
    memory, mask = encoded(model, list(lengths))
    expected, found = model.start(memory, mask, BEAM), decoder.start(memory, mask, BEAM)
    sentences = 3
    for position in range(STEPS):
        tokens = torch.randint(4, VOCAB, (sentences * BEAM, 1), generator=generator)
        theirs, expected = model.decode_step(tokens, expected)
        ours, found = decoder.decode_step(tokens, found)
        assert not theirs.isnan().any()
        worst = max(worst, float((ours - theirs).abs().nan_to_num(inf).max()))
        kept = torch.arange(sentences)
        if position in (11, 23):
            kept = torch.tensor([0, 2] if position == 11 else [1])
        sentences = len(kept)
        within = torch.randint(0, BEAM, (sentences, BEAM), generator=generator)
        rows = (within + kept[:, None] * BEAM).flatten()
        expected, found = (state.reorder(rows).keep(kept) for state in (expected, found))
    return worst


@pytest.mark.parametrize("march", ["native", "x86-64", "x86-64-v3"])
@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_steps_equal_the_definition(
    name: str, pre_norm: bool, march: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = need_library(march)
    monkeypatch.setattr(decoder_step, "load_library", lambda: library)
    model = build(name, pre_norm=pre_norm)
    decoder = NativeDecoder(model, torch.float32)
    for longest in (19, 16, 32):  # whole vectors of source positions, and not
        assert compare(model, decoder, (longest, 15, 3)) < 2e-5


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("attention", {"decoder_windows": [1, 9], "encoder_windows": [3]}),
        ("lightconv", {"normalize": False}),
        ("dynamicconv", {"normalize": False, "decoder_conv_dim": None}),
    ],
)
@torch.inference_mode()
def test_options_of_mixers(name: str, fields: dict[str, Any]) -> None:
    need_library()
    model = build(name, **fields)
    assert compare(model, NativeDecoder(model, torch.float32)) < 2e-5


def rounded(model: Seq2SeqTransformer, linear: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Put another product of inputs and weights into every matrix of the decoder."""
    for layer in model.decoder.layers:
        for module in layer.modules():
            if isinstance(module, nn.Linear) and module not in (
                layer.source_attention.key,
                layer.source_attention.value,
            ):
                put(module, linear)
    model.project = lambda hidden: linear(hidden, model.output_weight)  # type: ignore[method-assign]


@pytest.mark.parametrize("march", ["native", "x86-64", "x86-64-v3"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("dtype", "product", "tolerance"),
    [(torch.bfloat16, bf16_product, 0.007), (torch.int8, int8_product, 0.025)],
)
@torch.inference_mode()
def test_low_precision_is_what_it_says(
    name: str,
    dtype: torch.dtype,
    product: Callable[[Tensor, Tensor], Tensor],
    tolerance: float,
    march: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = need_library(march)
    monkeypatch.setattr(decoder_step, "load_library", lambda: library)
    model = build(name)
    decoder = NativeDecoder(model, dtype)
    far = compare(model, decoder)
    rounded(model, product)
    # A sum that rounds the other way moves what follows by a unit of the last place.
    near = compare(model, decoder)
    assert near < tolerance < far


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_no_bit_depends_on_the_rows_beside_it(name: str, dtype: torch.dtype) -> None:
    need_library()
    model = build(name)
    decoder = NativeDecoder(model, dtype)
    memory, mask = encoded(model, [9] * 40)
    together = decoder.start(memory, mask, 1)
    alone = [decoder.start(memory[n : n + 1], mask[n : n + 1], 1) for n in range(40)]
    entered = alone[0]
    for state in alone[1:]:
        entered = entered.join(state)
    first = decoder.start(memory[:1], mask[:1], 1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(9):
        tokens = torch.randint(4, VOCAB, (40, 1), generator=generator)
        ours, together = decoder.decode_step(tokens, together)
        joined, entered = decoder.decode_step(tokens, entered)
        own, first = decoder.decode_step(tokens[:1], first)
        assert torch.equal(ours, joined)
        assert torch.equal(ours[:1], own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@torch.inference_mode()
def test_nan_stays_in_its_row(dtype: torch.dtype) -> None:
    need_library()
    model = build("lightconv")
    model.tgt_embedding.weight.data[5, 7] = nan
    model.output_projection = nn.Parameter(torch.randn(VOCAB, 30))
    decoder = NativeDecoder(model, dtype)
    memory, mask = encoded(model, [4, 6])
    state = decoder.start(memory, mask, 2)
    logits, _ = decoder.decode_step(torch.tensor([[6], [5], [7], [8]]), state)
    assert logits[:, 0].isnan().all(1).tolist() == [False, True, False, False]
    assert not logits[[0, 2, 3]].isnan().any()


@torch.inference_mode()
def test_several_tokens_at_once() -> None:
    need_library()
    model = build("dynamicconv")
    decoder = NativeDecoder(model, torch.float32)
    memory, mask = encoded(model, [4, 6])
    tokens = torch.randint(4, VOCAB, (2, 5))
    expected, _ = model.decode_step(tokens, model.start(memory, mask, 1))
    found, state = decoder.decode_step(tokens, decoder.start(memory, mask, 1))
    assert found.shape == (2, 5, VOCAB)
    assert torch.allclose(found, expected, atol=2e-5)
    assert state.positions.tolist() == [5, 5]


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("conv", {}, "ConvMixer"),
        ("average_attention", {}, "AverageAttentionMixer"),
        ("dynamicconv", {"renormalize_edges": True}, "renormalised"),
    ],
)
def test_what_it_cannot_run_is_named(name: str, fields: dict[str, Any], reason: str) -> None:
    assert reason in (unsupported(build(name, **fields)) or "")
    assert unsupported(build("lightconv")) is None
