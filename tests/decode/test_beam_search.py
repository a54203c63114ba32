"""Beam search against exhaustive search, against a plain one for one sentence, and its rules."""

from functools import partial
from itertools import pairwise
from math import inf, isclose, nan

import pytest
import torch
from cpp_kernels import need_library
from hypothesis import given, settings
from hypothesis import strategies as st
from search_rules import allowed, check, divided
from table_model import IDS, TableModel, TableState
from torch import Tensor

from lightconv_mt.data.tokenizer_base import SpecialIds
from lightconv_mt.decode.beam_search import Entering, beam_search
from lightconv_mt.decode.candidates import rank_continuations
from lightconv_mt.decode.config import DecodeConfig, LengthNormalization, length_penalty
from lightconv_mt.decode.trace import Hypothesis
from lightconv_mt.errors import ConfigError
from lightconv_mt.ops import Backend


def search(
    model: TableModel,
    config: DecodeConfig,
    *,
    sentences: list[int],
    src_lengths: list[int] | None = None,
) -> list[list[Hypothesis]]:
    numbers = torch.tensor(sentences)
    return beam_search(
        model.step,
        model.start(numbers, config.beam_size),
        src_lengths=torch.tensor(src_lengths or [3] * len(sentences)),
        ids=IDS,
        config=config,
    )


def every_output(
    model: TableModel, sentence: int, config: DecodeConfig, limit: int
) -> list[tuple[float, tuple[int, ...]]]:
    """All outputs with a probability, best first."""
    found, open_ = [], [((), 0.0)]
    while open_:
        prefix, total = open_.pop()
        for token, value in enumerate(allowed(model, sentence, prefix, config, limit)):
            if value == -inf:
                continue
            if token == IDS.eos:
                score = divided(total + value, len(prefix) + 1, config)
                found.append((score, (*prefix, token)))
            else:
                open_.append(((*prefix, token), total + value))
    return sorted(found, reverse=True)


def plain_search(
    model: TableModel, sentence: int, config: DecodeConfig, limit: int
) -> list[tuple[float, tuple[int, ...]]]:
    """The rules of the docstring for one sentence, with lists only."""
    beam = config.beam_size
    live: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    ended: list[tuple[float, tuple[int, ...]]] = []
    for _ in range(limit + 1):
        ranked = sorted(
            (-(total + value), token, row)
            for row, (total, prefix) in enumerate(live)
            for token, value in enumerate(allowed(model, sentence, prefix, config, limit))
            if total + value > -inf
        )[: 2 * beam]
        previous, live = live, []
        for place, (loss, token, row) in enumerate(ranked):
            tokens = (*previous[row][1], token)
            if token != IDS.eos:
                live.append((-loss, tokens))
            elif place < beam and (len(ended) < beam or not config.early_stop):
                ended.append((divided(-loss, len(tokens), config), tokens))
        live = live[:beam]
        if config.early_stop and len(ended) == beam:
            break
    return sorted(ended, key=lambda item: -item[0])[:beam]


configs = st.builds(
    DecodeConfig,
    beam_size=st.integers(1, 6),
    length_penalty=st.sampled_from([-0.5, 0.0, 0.6, 1.0, 1.7]),
    length_normalization=st.sampled_from(LengthNormalization),
    max_length_ratio=st.sampled_from([0.0, 0.5, 1.2]),
    max_length_extra=st.integers(0, 8),
    min_length=st.integers(0, 4),
    unk_penalty=st.sampled_from([-0.7, 0.0, 0.9]),
    no_repeat_ngram_size=st.integers(0, 3),
    early_stop=st.booleans(),
)


@pytest.mark.parametrize("normalization", LengthNormalization)
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("early_stop", [True, False])
def test_a_full_beam_is_exhaustive_search(
    normalization: LengthNormalization, alpha: float, early_stop: bool
) -> None:
    config = DecodeConfig(
        beam_size=400,
        nbest=400,
        length_penalty=alpha,
        length_normalization=normalization,
        max_length=5,
        min_length=0,
        early_stop=early_stop,
    )
    model = TableModel(5, seed=int(10 * alpha))
    sentences = list(range(25))
    for sentence, found in enumerate(search(model, config, sentences=sentences)):
        expected = every_output(model, sentence, config, limit=5)
        assert len(expected) == 364
        check(found, expected, nbest=400)


@settings(max_examples=40, deadline=None)
@given(config=configs, seed=st.integers(0, 10_000), vocab=st.integers(4, 5))
def test_a_full_beam_is_exhaustive_search_under_every_option(
    config: DecodeConfig, seed: int, vocab: int
) -> None:
    model = TableModel(vocab, seed=seed)
    wide = DecodeConfig(**{**vars(config), "beam_size": 400, "nbest": 400, "max_length": 5})
    limit = wide.length_limit(3)
    (found,) = search(model, wide, sentences=[seed])
    check(found, every_output(model, seed, wide, limit), nbest=400)


@settings(max_examples=150, deadline=None)
@given(
    config=configs,
    seed=st.integers(0, 10_000),
    vocab=st.integers(4, 30),
    levels=st.sampled_from([None, 2, 1]),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
)
def test_a_batch_gives_what_a_plain_search_gives(
    config: DecodeConfig, seed: int, vocab: int, levels: int | None, lengths: list[int]
) -> None:
    config.nbest = config.beam_size
    model = TableModel(vocab, seed=seed, scale=3.0)
    if levels:  # many equal scores, so that ties decide
        model.table = (model.table * levels).round() / levels
    sentences = [seed + n for n in range(len(lengths))]
    batch = search(model, config, sentences=sentences, src_lengths=lengths)
    for sentence, length, found in zip(sentences, lengths, batch, strict=True):
        expected = plain_search(model, sentence, config, config.length_limit(length))
        check(found, expected, nbest=config.nbest)


@settings(max_examples=100, deadline=None)
@given(config=configs, seed=st.integers(0, 10_000), vocab=st.integers(4, 30))
def test_rules_hold(config: DecodeConfig, seed: int, vocab: int) -> None:
    config.nbest = config.beam_size
    model = TableModel(vocab, seed=seed)
    lengths = [1, 4, 7]
    for sentence, found in enumerate(
        search(model, config, sentences=[0, 1, 2], src_lengths=lengths)
    ):
        limit = config.length_limit(lengths[sentence])
        assert len({hypothesis.tokens for hypothesis in found}) == len(found) <= config.beam_size
        assert all(a.score >= b.score for a, b in pairwise(found))
        for hypothesis in found:
            *prefix, last = hypothesis.tokens
            assert last == IDS.eos
            assert IDS.eos not in prefix
            assert IDS.pad not in prefix
            assert min(config.min_length, limit) <= len(prefix) <= limit
            total = 0.0
            for position, token in enumerate(hypothesis.tokens):
                before = hypothesis.tokens[:position]
                value = allowed(model, sentence, before, config, limit)[token]
                assert isclose(hypothesis.token_scores[position], value, abs_tol=1e-9)
                total += value
            score = total / length_penalty(len(hypothesis.tokens), config)
            assert isclose(hypothesis.score, score, abs_tol=1e-9)
            size = config.no_repeat_ngram_size
            ngrams = [tuple(prefix[i : i + size]) for i in range(len(prefix) - size + 1)]
            assert not size or len(set(ngrams)) == len(ngrams)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_beam_of_one_is_greedy(dtype: torch.dtype) -> None:
    model = TableModel(50, seed=1, dtype=dtype)
    config = DecodeConfig(beam_size=1, max_length=12)
    for sentence, (found,) in enumerate(search(model, config, sentences=list(range(40)))):
        tokens: tuple[int, ...] = ()
        while tokens[-1:] != (IDS.eos,):
            logp = allowed(model, sentence, tokens, config, limit=12)
            tokens = (*tokens, logp.index(max(logp)))
        assert found.tokens == tokens


@settings(max_examples=30, deadline=None)
@given(
    config=configs,
    order=st.permutations(range(9)),
    cut=st.integers(1, 8),
)
def test_batch_mates_change_nothing(config: DecodeConfig, order: list[int], cut: int) -> None:
    config.nbest = config.beam_size
    model = TableModel(20, seed=3, dtype=torch.float32)
    lengths = [3 + sentence % 4 for sentence in order]
    together = search(model, config, sentences=order, src_lengths=lengths)
    first = search(model, config, sentences=order[:cut], src_lengths=lengths[:cut])
    second = search(model, config, sentences=order[cut:], src_lengths=lengths[cut:])
    assert together == first + second


@settings(max_examples=60, deadline=None)
@given(
    config=configs,
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    max_sentences=st.integers(1, 9),
    max_source_tokens=st.integers(3, 40),
)
def test_when_sentences_enter_changes_nothing(
    config: DecodeConfig, sizes: list[int], max_sentences: int, max_source_tokens: int
) -> None:
    config.nbest = config.beam_size
    model = TableModel(20, seed=3, dtype=torch.float32)
    numbers = torch.arange(sum(sizes))
    lengths = 2 + numbers % 5
    prefixes = [[5] * (n % 3) for n in range(len(numbers))]
    together = beam_search(
        model.step,
        model.start(numbers, config.beam_size),
        src_lengths=lengths,
        ids=IDS,
        config=config,
        prefixes=prefixes,
    )
    model.calls.clear()
    ends = [sum(sizes[:n]) for n in range(len(sizes) + 1)]
    parts = [
        Entering(
            partial(model.start, numbers[first:last], config.beam_size),
            lengths[first:last],
            prefixes[first:last],
        )
        for first, last in pairwise(ends)
    ]
    entered = beam_search(
        model.step,
        parts[0].start(),
        src_lengths=parts[0].src_lengths,
        ids=IDS,
        config=config,
        prefixes=parts[0].prefixes,
        entering=parts[1:],
        max_sentences=max_sentences,
        max_source_tokens=max_source_tokens,
    )
    assert entered == together
    most = max(max_sentences, *sizes) * config.beam_size
    assert max(map(len, model.calls)) <= most


def test_sentences_enter_while_others_are_not_done() -> None:
    model = TableModel(6, seed=6, scale=0.5)
    config = DecodeConfig(beam_size=1, max_length_ratio=1.0, max_length_extra=0, min_length=30)
    beam_search(
        model.step,
        model.start(torch.arange(2), 1),
        src_lengths=torch.tensor([2, 9]),
        ids=IDS,
        config=config,
        entering=[Entering(partial(model.start, torch.tensor([2]), 1), torch.tensor([4]))],
        max_sentences=2,
        max_source_tokens=100,
    )
    assert [len(tokens) for tokens in model.calls] == [2] * 3 + [2] * 5 + [1] * 2


@pytest.mark.parametrize("alpha", [-0.5, 0.4, 1.0, 1.5])
@pytest.mark.parametrize("normalization", LengthNormalization)
def test_without_early_stop_the_best_are_kept_and_the_end_is_not_always_waited_for(
    alpha: float, normalization: LengthNormalization
) -> None:
    model = TableModel(12, seed=5, scale=3.0)
    config = DecodeConfig(
        beam_size=3,
        nbest=3,
        length_penalty=alpha,
        length_normalization=normalization,
        max_length_ratio=2.0,
        max_length_extra=3,
        early_stop=False,
    )
    lengths = [1 + sentence % 7 for sentence in range(60)]
    results = search(model, config, sentences=list(range(60)), src_lengths=lengths)
    for sentence, found in enumerate(results):
        expected = plain_search(model, sentence, config, config.length_limit(lengths[sentence]))
        check(found, expected, nbest=3)
    rows = sum(len(tokens) for tokens in model.calls)
    if alpha <= 1.0:  # beyond, the length limit is so kind a divisor that nothing is ruled out
        assert rows < 3 * sum(config.length_limit(length) + 1 for length in lengths)


def test_unk_penalty_drives_out_the_unknown_token() -> None:
    model = TableModel(8, seed=2)
    model.table[:, IDS.unk] += 3.0
    sentences = list(range(20))

    def unknowns(penalty: float) -> int:
        config = DecodeConfig(max_length=10, unk_penalty=penalty)
        found = search(model, config, sentences=sentences)
        return sum(hypotheses[0].tokens.count(IDS.unk) for hypotheses in found)

    assert unknowns(0.0) > unknowns(2.0) > unknowns(1e9) == 0


def test_a_bonus_for_the_unknown_token_keeps_the_search_going() -> None:
    model = TableModel(8, seed=2, scale=3.0)
    config = DecodeConfig(
        beam_size=2,
        nbest=2,
        max_length=12,
        unk_penalty=-3.0,
        length_normalization=LengthNormalization.none,
        early_stop=False,
    )
    for sentence, found in enumerate(search(model, config, sentences=list(range(60)))):
        check(found, plain_search(model, sentence, config, limit=12), nbest=2)


def test_nan_is_impossible_and_spoils_no_other_sentence() -> None:
    model = TableModel(20, seed=4)
    config = DecodeConfig(beam_size=3, nbest=3, max_length=6)
    sound = search(model, config, sentences=[0, 1, 2])

    def step(tokens: Tensor, state: TableState) -> tuple[Tensor, TableState]:
        logits, state = model.step(tokens, state)
        logits[state.row_sentences == 1] = nan
        logits[state.row_sentences == 2, :, 5] = inf
        return logits, state

    found = beam_search(
        step,
        model.start(torch.arange(3), 3),
        src_lengths=torch.full((3,), 3),
        ids=IDS,
        config=config,
    )
    assert found == [sound[0], [], []]
    assert [len(tokens) for tokens in model.calls[-2:]] == [3, 3]  # alone after the first step


def test_one_nan_row_kills_only_what_continues_it() -> None:
    model = TableModel(6, seed=4)
    config = DecodeConfig(beam_size=300, nbest=300, max_length=4)
    everything = every_output(model, 0, config, limit=4)

    def step(tokens: Tensor, state: TableState) -> tuple[Tensor, TableState]:
        logits, state = model.step(tokens, state)
        logits[tokens[:, 0] == 5, :, 0] = nan
        return logits, state

    (found,) = beam_search(
        step,
        model.start(torch.arange(1), 300),
        src_lengths=torch.tensor([3]),
        ids=IDS,
        config=config,
    )
    check(found, [item for item in everything if 5 not in item[1]], nbest=300)


def test_finished_sentences_leave_the_batch_and_no_padding_is_fed() -> None:
    model = TableModel(6, seed=6, scale=0.5)
    config = DecodeConfig(beam_size=4, max_length_ratio=1.0, max_length_extra=0, min_length=30)
    search(model, config, sentences=[0, 1, 2], src_lengths=[2, 9, 4])
    sizes = [len(tokens) for tokens in model.calls]
    assert sizes == [12] * 3 + [8] * 2 + [4] * 5
    assert not any((tokens == IDS.pad).any() for tokens in model.calls)


def test_rows_that_are_dead_read_no_padding() -> None:
    ids = SpecialIds(bos=1, pad=0, eos=2, unk=3)
    model = TableModel(5, seed=6)
    (found,) = beam_search(
        model.step,
        model.start(torch.arange(1), 30),
        src_lengths=torch.tensor([3]),
        ids=ids,
        config=DecodeConfig(beam_size=30, nbest=30, max_length=2, min_length=0),
    )
    assert len(found) == 1 + 3 + 9
    assert not any((tokens == ids.pad).any() for tokens in model.calls)


def test_the_state_is_reordered_at_most_once_a_step() -> None:
    class Counted:
        def __init__(self, state: TableState, log: list[str]) -> None:
            self.state, self.log = state, log

        def reorder(self, rows: Tensor) -> "Counted":
            self.log.append("reorder")
            return Counted(self.state.reorder(rows), self.log)

        def keep(self, sentences: Tensor) -> "Counted":
            self.log.append("keep")
            return Counted(self.state.keep(sentences), self.log)

    def step(tokens: Tensor, state: Counted) -> tuple[Tensor, Counted]:
        state.log.append("step")
        logits, inner = model.step(tokens, state.state)
        return logits, Counted(inner, state.log)

    model = TableModel(12, seed=8)
    for beam_size in (1, 4):
        log: list[str] = []
        beam_search(
            step,
            Counted(model.start(torch.arange(5), beam_size), log),
            src_lengths=torch.full((5,), 4),
            ids=IDS,
            config=DecodeConfig(beam_size=beam_size, max_length=9),
        )
        steps = "".join(word[0] for word in log).split("s")[1:]
        assert set(steps) <= {"", "r", "rk"}
        assert beam_size > 1 or "r" not in steps


def test_an_empty_batch_has_no_results() -> None:
    assert search(TableModel(5, seed=0), DecodeConfig(), sentences=[], src_lengths=[]) == []


def test_length_limits() -> None:
    config = DecodeConfig(max_length_ratio=1.2, max_length_extra=10)
    assert [config.length_limit(n) for n in (1, 5, 7)] == [11, 16, 18]
    assert DecodeConfig(max_length=12).length_limit(100) == 12
    nothing = DecodeConfig(max_length=0, min_length=0)
    assert search(TableModel(5, seed=0), nothing, sentences=[0])[0][0].tokens == (IDS.eos,)


@pytest.mark.parametrize(
    ("key", "value", "also"),
    [
        ("beam_size", 0, {}),
        ("beam_size", -1, {}),
        ("beam_size", 10**6, {}),
        ("nbest", 0, {}),
        ("nbest", 6, {"beam_size": 5}),
        ("max_length_ratio", -1.0, {}),
        ("max_length_ratio", inf, {}),
        ("max_length_extra", -1, {}),
        ("max_length", 3, {"min_length": 4}),
        ("min_length", -1, {}),
        ("length_penalty", nan, {}),
        ("unk_penalty", inf, {}),
        ("no_repeat_ngram_size", -2, {}),
    ],
)
def test_impossible_settings_are_refused_by_name(
    key: str, value: float, also: dict[str, int]
) -> None:
    with pytest.raises(ConfigError, match=rf"decode\.{key} is {value}"):
        DecodeConfig(**{key: value, **also})


@pytest.fixture(params=[Backend.torch, Backend.native])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param is Backend.native:
        need_library()
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("beam", "vocab"), [(1, 3), (2, 3), (4, 7), (5, 300)])
def test_both_backends_rank_alike(dtype: torch.dtype, beam: int, vocab: int) -> None:
    need_library()
    logits = (torch.randn(6 * beam, vocab) * 3).round().to(dtype)  # with ties
    logits[1, ::2], logits[2, 1], logits[-1, 1:] = -inf, nan, -inf
    partition = logits.to(torch.promote_types(dtype, torch.float32)).logsumexp(-1)
    totals = torch.randn(6, beam).double().round()
    totals[0, 1:] = -inf
    arguments = logits, partition, totals, 2 * beam
    expected = rank_continuations(*arguments, backend=Backend.torch)
    found = rank_continuations(*arguments, backend=Backend.native)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_equal_totals_rank_by_token_then_by_row(backend: Backend) -> None:
    totals, rows, words = rank_continuations(
        torch.zeros(4, 3), torch.zeros(4), torch.zeros(2, 2).double(), 4, backend=backend
    )
    assert totals.tolist() == [[0.0] * 4] * 2
    assert words.tolist() == [[0, 0, 1, 1]] * 2
    assert rows.tolist() == [[0, 1, 0, 1]] * 2
