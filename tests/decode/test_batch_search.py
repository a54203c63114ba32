"""What is found does not depend on the batch, with the decoder in C++ and without."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_models import mixer_model

from lightconv_mt.data.tokenizer_base import SpecialIds
from lightconv_mt.decode.batch_search import BatchSearch, Request
from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.decode.shortlist import Shortlist
from lightconv_mt.decode.trace import Hypothesis
from lightconv_mt.errors import ConfigError
from lightconv_mt.mixers import MIXERS
from lightconv_mt.model.ensemble import Ensemble
from lightconv_mt.model.transformer import Seq2SeqTransformer
from lightconv_mt.ops import Backend

IDS = SpecialIds(bos=0, pad=1, eos=2, unk=3)
VOCAB = 60
BATCH_SIZES = (1, 2, 3, 7, 16, 64, 500)
CONFIG = DecodeConfig(beam_size=4, nbest=4, max_length_ratio=1.5, max_length_extra=5)


build = partial(mixer_model, vocab_size=VOCAB)


def search_of(
    model: Seq2SeqTransformer | Ensemble, precision: torch.dtype = torch.float32
) -> BatchSearch:
    device = torch.device("cpu")
    return BatchSearch(model, src_ids=IDS, tgt_ids=IDS, device=device, precision=precision)


def requests_of(count: int) -> list[Request]:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 14, (count,), generator=generator).tolist()
    return [
        Request(
            [*torch.randint(4, VOCAB, (length,), generator=generator).tolist(), IDS.eos],
            line,
            [9] * (line % 11 == 0),
        )
        for line, length in enumerate(lengths)
    ]


def searched(
    search: BatchSearch,
    requests: list[Request],
    config: DecodeConfig,
    size: int,
    shortlist: Shortlist | None = None,
) -> list[list[Hypothesis]]:
    return search.search(requests, config, max_tokens=4096, batch_size=size, shortlist=shortlist)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("name", ["lightconv", "dynamicconv", "attention"])
def test_in_strict_mode_no_bit_depends_on_the_batch(name: str, precision: torch.dtype) -> None:
    search = search_of(build(name), precision)
    many = name == "lightconv" and precision is torch.float32
    requests = requests_of(500 if many else 40)
    config = replace(CONFIG, strict=True)
    expected = searched(search, requests, config, 64)
    assert all(len(found) == 4 for found in expected)
    for size in BATCH_SIZES:
        assert searched(search, requests, config, size) == expected
    order = torch.randperm(len(requests), generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = searched(search, [requests[index] for index in order], config, 7)
    assert shuffled == [expected[index] for index in order]


def test_in_strict_mode_without_the_library_each_is_computed_alone() -> None:
    search = search_of(build("lightconv", backend=Backend.torch))
    config, requests = replace(CONFIG, strict=True), requests_of(12)
    expected = searched(search, requests, config, 1)
    assert searched(search, requests, config, 64) == expected


def test_otherwise_the_batch_moves_hardly_a_line() -> None:
    search, requests = search_of(build("lightconv")), requests_of(500)
    expected = searched(search, requests, CONFIG, 1)
    for size in (7, 64, 500):
        found = searched(search, requests, CONFIG, size)
        same = sum(
            [each.tokens for each in ours] == [each.tokens for each in theirs]
            for ours, theirs in zip(found, expected, strict=True)
        )
        assert same >= 0.999 * len(requests)


@pytest.mark.parametrize("name", ["lightconv", "dynamicconv", "attention"])
@pytest.mark.parametrize("options", [{}, {"sampling": True}, {"beam_groups": 2, "diversity": 0.3}])
def test_the_library_finds_what_is_found_without_it(name: str, options: dict[str, Any]) -> None:
    requests, config = requests_of(60), replace(CONFIG, **options)
    found = searched(search_of(build(name)), requests, config, 16)
    plain = searched(search_of(build(name, backend=Backend.torch)), requests, config, 16)
    assert [[each.tokens for each in item] for item in found] == [
        [each.tokens for each in item] for item in plain
    ]
    for ours, theirs in zip(found, plain, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.token_scores == pytest.approx(other.token_scores, abs=1e-5)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("sides", "said"),
    [
        ({"encoder_mixer": MIXERS["conv"]()}, "plain torch encodes, not C++: it has no ConvMixer"),
        (
            {"decoder_mixer": MIXERS["average_attention"]()},
            "plain torch makes the decoder's steps, not C++: it has no AverageAttentionMixer",
        ),
    ],
)
def test_one_side_may_be_in_plain_torch(
    sides: dict[str, Any], said: str, strict: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    requests, config = requests_of(40), replace(CONFIG, strict=strict)
    search = search_of(build("lightconv", sides=sides))
    assert [record.message for record in caplog.records] == [said]
    found = searched(search, requests, config, 16)
    plain = searched(
        search_of(build("lightconv", sides=sides, backend=Backend.torch)), requests, config, 16
    )
    for ours, theirs in zip(found, plain, strict=True):
        assert [each.tokens for each in ours] == [each.tokens for each in theirs]
        assert [each.score for each in ours] == pytest.approx(
            [each.score for each in theirs], abs=1e-5
        )
    if strict:
        assert searched(search, requests, config, 3) == found


def test_weights_are_those_of_now() -> None:
    model = build("lightconv")
    search, requests = search_of(model), requests_of(8)
    before = searched(search, requests, CONFIG, 8)
    for side in (model.decoder, model.encoder):
        with torch.no_grad():
            side.layers[-1].feed_forward.outer.weight.mul_(-2.0)
        after = searched(search, requests, CONFIG, 8)
        assert after != before
        assert after == searched(search_of(model), requests, CONFIG, 8)
        before = after


def test_nothing_is_found_for_no_source() -> None:
    search = search_of(build("lightconv"))
    empty = Request([], 0, [])
    found = searched(search, [empty, *requests_of(2), empty], CONFIG, 8)
    assert [len(item) for item in found] == [0, 4, 4, 0]
    assert searched(search, [empty], CONFIG, 8) == [[]]


@pytest.mark.parametrize(
    ("backend", "fields", "reason"),
    [
        (Backend.torch, {}, "kernels is not native"),
        (Backend.native, {"renormalize_edges": True}, "renormalised"),
    ],
)
def test_int8_needs_the_library(backend: Backend, fields: dict[str, Any], reason: str) -> None:
    model = build("dynamicconv", backend=backend, **fields)
    with pytest.raises(ConfigError, match=f"int8 is of the C.. decoder, but .*{reason}"):
        search_of(model, torch.int8)


def shortlist_of(per_piece: int = 3, frequent: int = 6) -> Shortlist:
    generator = np.random.default_rng(1)
    table = generator.integers(0, VOCAB, (VOCAB, per_piece), np.int32)
    return Shortlist(table, np.arange(20, 20 + frequent, dtype=np.int32), IDS, VOCAB)


SEARCHES: list[dict[str, Any]] = [
    {},
    {"beam_size": 1, "nbest": 1},
    {"no_repeat_ngram_size": 2, "unk_penalty": -1.0, "word_reward": 0.2, "min_length": 4},
    {"beam_groups": 2, "diversity": 0.3, "ban_unk": True},
    {"sampling": True},
    {"sampling": True, "top_k": 5, "temperature": 1.5},
]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("options", [SEARCHES[0], SEARCHES[3], SEARCHES[4]])
@pytest.mark.parametrize("members", [1, 2])
def test_lists_of_a_batch_leave_each_other_alone(
    options: dict[str, Any], precision: torch.dtype, members: int
) -> None:
    model = build("lightconv")
    search = search_of(Ensemble([model] * 2) if members > 1 else model, precision)
    requests, config = requests_of(20), replace(CONFIG, strict=True, **options)
    shortlist = shortlist_of()
    expected = searched(search, requests, config, 1, shortlist)
    for size in (3, 8):
        assert searched(search, requests, config, size, shortlist) == expected
    for request, found in zip(requests, expected, strict=True):
        listed = shortlist.tokens(request.source, request.prefix).tolist()
        assert found and all(set(each.tokens) <= set(listed) for each in found)
    assert expected != searched(search, requests, config, 8)


@pytest.mark.parametrize("backend", [Backend.native, Backend.torch])
@pytest.mark.parametrize("options", SEARCHES)
@pytest.mark.parametrize("members", [1, 2])
def test_a_listed_search_is_that_of_a_model_which_says_nothing_else(
    options: dict[str, Any], backend: Backend, members: int
) -> None:
    names = ["lightconv", "attention"][:members]
    requests, config = requests_of(12), replace(CONFIG, **options)
    shortlist = shortlist_of()
    models = [build(name, backend=backend) for name in names]
    search = search_of(Ensemble(models) if members > 1 else models[0])
    found = searched(search, requests, config, 8, shortlist)

    plain = [build(name, backend=Backend.torch) for name in names]
    masked = search_of(Ensemble(plain) if members > 1 else plain[0])
    for request, ours in zip(requests, found, strict=True):
        banned = torch.ones(VOCAB, dtype=torch.bool)
        banned[shortlist.tokens(request.source, request.prefix)] = False
        for model in plain:
            model.project = masked_projection(model.output_weight, banned)  # type: ignore[method-assign]
        (theirs,) = searched(masked, [request], config, 1)
        assert [each.tokens for each in ours] == [each.tokens for each in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one.token_scores == pytest.approx(other.token_scores, abs=1e-5)
            assert list(one.tokens[: len(request.prefix)]) == request.prefix


def masked_projection(weight: Tensor, banned: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda hidden: (hidden @ weight.T).masked_fill(banned, -inf)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("options", SEARCHES)
def test_a_list_of_everything_changes_no_bit(
    options: dict[str, Any], precision: torch.dtype
) -> None:
    search, requests = search_of(build("dynamicconv"), precision), requests_of(30)
    config = replace(CONFIG, **options)
    everything = shortlist_of(frequent=0)
    everything = Shortlist(everything.table, np.arange(VOCAB, dtype=np.int32), IDS, VOCAB)
    assert searched(search, requests, config, 8, everything) == searched(
        search, requests, config, 8
    )
