"""Decoding among listed tokens: C++ against the definition, and the whole vocabulary listed."""

from math import inf

import pytest
import torch
from cpp_kernels import need_library
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_models import MODELS, VOCAB, build, encoded
from torch import Tensor

from lightconv_mt.model.native_decoder import NativeDecoder
from lightconv_mt.model.token_lists import STEP, ListedDecoder, TokenLists
from lightconv_mt.ops import decoder_step

DTYPES = [torch.float32, torch.bfloat16, torch.int8]
CPU = torch.device("cpu")


def lists_of(sizes: list[int], generator: torch.Generator) -> TokenLists:
    picked = [torch.randperm(VOCAB, generator=generator)[:size].sort().values for size in sizes]
    return TokenLists.build(picked, CPU)


def places(lists: TokenLists, beam: int, generator: torch.Generator) -> Tensor:
    """Any listed token of every row."""
    share = torch.rand(len(lists.sizes), beam, generator=generator)
    return (share * lists.sizes[:, None]).long().view(-1, 1)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(1, VOCAB), min_size=3, max_size=3),
    beam=st.integers(1, 5),
    name=st.sampled_from(list(MODELS)),
)
@torch.inference_mode()
def test_logits_are_those_of_the_lists(seed: int, sizes: list[int], beam: int, name: str) -> None:
    need_library()
    generator = torch.Generator().manual_seed(seed)
    model = build(name, dim=36)
    memory, mask = encoded(model, [9, 5, 7])
    lists = lists_of(sizes, generator)
    listed, native = ListedDecoder(model), NativeDecoder(model, torch.float32)
    theirs = listed.start(memory, mask, beam, lists)
    ours = native.start(memory, mask, beam, lists)
    plain = model.start(memory, mask, beam)
    for kept in ([0, 1, 2], [2, 0], [1]):
        own = theirs.lists
        tokens = places(own, beam, generator)
        rows = own.tokens.repeat_interleave(beam, 0)
        everything, plain = model.decode_step(rows.gather(1, tokens), plain)
        expected, theirs = listed.decode_step(tokens, theirs)
        found, ours = native.decode_step(tokens, ours)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
        for row, size in enumerate(own.sizes.repeat_interleave(beam).tolist()):
            assert torch.equal(expected[row, 0, :size], everything[row, 0, rows[row, :size]])
            assert (expected[row, 0, size:] == -inf).all()
        left = torch.tensor(kept)
        moved = (left[:, None] * beam + torch.arange(beam)).flatten()
        theirs, ours, plain = (state.reorder(moved).keep(left) for state in (theirs, ours, plain))
        assert 0 <= theirs.lists.tokens.shape[1] - int(theirs.lists.sizes.max()) < STEP


@pytest.mark.parametrize("march", ["native", "x86-64", "x86-64-v3"])
@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_no_bit_depends_on_what_is_listed_or_beside(
    dtype: torch.dtype, march: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = need_library(march)
    monkeypatch.setattr(decoder_step, "load_library", lambda: library)
    generator = torch.Generator().manual_seed(1)
    model = build("lightconv", dim=36)
    decoder = NativeDecoder(model, dtype)
    count, beam = 40, 3
    memory, mask = encoded(model, [9] * count)
    lists = lists_of(torch.randint(1, VOCAB, (count,), generator=generator).tolist(), generator)
    together = decoder.start(memory, mask, beam, lists)
    free = decoder.start(memory, mask, beam)
    one = lists.keep(torch.tensor([3]))
    alone = decoder.start(memory[3:4], mask[3:4], beam, one)
    for _ in range(4):
        tokens = places(lists, beam, generator)
        rows = lists.tokens.repeat_interleave(beam, 0)
        found, together = decoder.decode_step(tokens, together)
        whole, free = decoder.decode_step(rows.gather(1, tokens), free)
        chosen = whole[:, 0].gather(1, rows)
        assert torch.equal(found[:, 0][found[:, 0] > -inf], chosen[found[:, 0] > -inf])
        own, alone = decoder.decode_step(tokens[9:12], alone)
        assert torch.equal(own, found[9:12, :, : own.shape[2]])
        assert (found[9:12, :, own.shape[2] :] == -inf).all()


@torch.inference_mode()
def test_several_tokens_at_once_and_sentences_that_join() -> None:
    need_library()
    generator = torch.Generator().manual_seed(1)
    model = build("dynamicconv")
    memory, mask = encoded(model, [4, 6])
    lists = lists_of([5, 70], generator)
    tokens = places(lists, 1, generator).repeat(1, 3)
    listed, decoder = ListedDecoder(model), NativeDecoder(model, torch.float32)
    expected, _ = listed.decode_step(tokens, listed.start(memory, mask, 1, lists))
    first, second = (
        decoder.start(memory[n : n + 1], mask[n : n + 1], 1, lists.keep(torch.tensor([n])))
        for n in range(2)
    )
    found, _ = decoder.decode_step(tokens, first.join(second))
    assert found.shape == (2, 3, 3 * STEP)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
