"""One translation a line, in order, whatever the lines and batches are."""

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import exp, inf, nan
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightconv_mt.data.tokenizer_base import SpecialIds
from lightconv_mt.decode.batch_search import batches_by_length
from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.decode.long_lines import LongLines
from lightconv_mt.decode.translator import Translator
from lightconv_mt.mixers.lightconv import LightConvConfig
from lightconv_mt.model.transformer import ModelConfig, Seq2SeqTransformer, Tying
from lightconv_mt.ops import Backend

IDS = SpecialIds(bos=0, pad=1, eos=2, unk=3)
LETTERS = "abcdefghijklmnopqrstuvwxyz \n\r"
VOCAB = len(LETTERS) + 4
GREEDY = DecodeConfig(beam_size=1)


class Letters:
    """A tokenizer with one id a letter; others are dropped."""

    ids = IDS

    def encode_batch(self, lines: list[str]) -> list[list[int]]:
        return [[LETTERS.index(c) + 4 for c in line if c in LETTERS] for line in lines]

    def decode(self, ids: list[int]) -> str:
        return "".join(LETTERS[i - 4] for i in ids if i > 3)


@dataclass(frozen=True)
class EchoState:
    src: Tensor
    position: int = 0

    def reorder(self, rows: Tensor) -> "EchoState":
        return self

    def keep(self, sentences: Tensor) -> "EchoState":
        return replace(self, src=self.src[sentences])


class Echo(nn.Module):
    """Repeats its source, with the letter that follows each as a second choice."""

    backend = Backend.torch

    def __init__(self) -> None:
        """Start with nothing seen."""
        super().__init__()
        self.batches: list[tuple[int, int]] = []
        self.seen: list[Any] = []
        self.bad = -1

    def encode(self, src: Tensor, src_mask: Tensor) -> Tensor:
        assert torch.equal(src_mask, src != IDS.pad)
        assert (src.gather(1, src_mask.sum(1, keepdim=True) - 1) == IDS.eos).all()
        self.batches.append(tuple(src.shape))
        self.seen.append((self.training, torch.is_inference_mode_enabled()))
        self.seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else 0)
        return src

    def start(self, memory: Tensor, src_mask: Tensor, beam_size: int) -> EchoState:
        return EchoState(memory)

    def decode_step(self, tokens: Tensor, state: EchoState) -> tuple[Tensor, EchoState]:
        beam = len(tokens) // len(state.src)
        last = min(state.position, state.src.shape[1] - 1)
        wanted = state.src[:, last].repeat_interleave(beam)
        logits = torch.zeros(len(tokens), 1, VOCAB)
        logits.scatter_(2, ((wanted + 1) % VOCAB)[:, None, None], 5.0)
        logits.scatter_(2, wanted[:, None, None], 9.0)
        logits[wanted == self.bad] = nan
        return logits, replace(state, position=state.position + 1)


def translator(model: nn.Module | None = None, **options: Any) -> Translator:
    pair: Any = SimpleNamespace(src=Letters(), tgt=Letters())
    chosen: Any = model or Echo()
    return Translator(chosen, pair, device=torch.device("cpu"), **options)


lines_of_letters = st.lists(st.text(alphabet="abc xyz\u2028é", max_size=12), max_size=30)


@settings(max_examples=40, deadline=None)
@given(
    lines=lines_of_letters,
    max_tokens=st.integers(1, 60),
    batch_size=st.integers(1, 9),
    beam_size=st.integers(1, 3),
    chunk_size=st.integers(1, 40),
)
def test_output_is_one_line_an_input_line_in_order(
    lines: list[str], max_tokens: int, batch_size: int, beam_size: int, chunk_size: int
) -> None:
    config = DecodeConfig(beam_size=beam_size)
    one = translator()
    found = one.translate(lines, config, max_tokens=max_tokens, batch_size=batch_size)
    kept = ["".join(c for c in line if c in LETTERS) for line in lines]
    expected = ["" if not line.strip() else same for line, same in zip(lines, kept, strict=True)]
    assert [item.text for item in found] == expected
    stream = translator().translate_stream(iter(lines), config, chunk_size=chunk_size)
    assert [item.text for item in stream] == expected
    assert one.report.lines == len(lines)
    assert one.report.empty == expected.count("")


def test_batches_keep_to_both_budgets() -> None:
    lines = ["a" * length for length in (1, 2, 3, 5, 8, 13, 21, 30, 1, 2, 3)]
    model = Echo()
    translator(model).translate(lines, GREEDY, max_tokens=24, batch_size=4)
    assert sum(rows for rows, _ in model.batches) == len(lines)
    for rows, width in model.batches:
        assert rows <= 4
        assert rows * width <= 24 or rows == 1
    assert [width for _, width in model.batches] == sorted(
        (width for _, width in model.batches), reverse=True
    )


@given(st.lists(st.integers(0, 50)), st.integers(1, 100), st.integers(1, 10))
def test_every_source_is_in_one_batch(lengths: list[int], max_tokens: int, batch_size: int) -> None:
    sources = [[5] * length for length in lengths]
    batches = list(batches_by_length(sources, max_tokens=max_tokens, batch_size=batch_size))
    indices = sorted(index for batch in batches for index in batch)
    assert indices == [index for index, length in enumerate(lengths) if length]


def test_a_stream_is_read_no_further_than_its_chunk() -> None:
    read: list[int] = []

    def lines() -> Iterator[str]:
        for number in range(100):
            read.append(number)
            yield "abc"

    stream = translator().translate_stream(lines(), GREEDY, chunk_size=7)
    assert next(stream).text == "abc"
    assert len(read) == 7


def test_nothing_to_translate_gives_empty_lines() -> None:
    one = translator()
    found = one.translate(["", " \t", "\u3000", "é", "ab"], GREEDY)
    assert [item.text for item in found] == ["", "", "", "", "ab"]
    assert found[0].nbest == (("", 0.0),)
    assert one.translate([], GREEDY) == []
    assert one.report.text == "lines 5, empty 4"


def test_long_lines_are_cut_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    one = translator(max_source_tokens=6)
    with caplog.at_level(logging.WARNING):
        found = one.translate(["abcde", "abcdef", "abcdefgh"], GREEDY)
    assert [item.text for item in found] == ["abcde", "abcde", "abcde"]
    assert one.report.truncated == 2
    (record,) = caplog.records
    assert "line 2 has 6 tokens; only the first 5" in record.getMessage()


def test_output_holds_no_line_break() -> None:
    one = translator()
    (found,) = one.translate(["ab\ncd\rz"], GREEDY)
    assert found.text == "ab cd z"
    assert one.report.line_breaks == 1


def test_nbest_holds_distinct_outputs_with_scores() -> None:
    (found,) = translator().translate(["abc"], DecodeConfig(beam_size=4, nbest=3))
    assert len(found.nbest) == 3
    assert found.nbest[0] == (found.text, found.score) == ("abc", found.nbest[0][1])
    scores = [score for _, score in found.nbest]
    assert scores == sorted(scores, reverse=True)


def test_a_line_without_any_output_is_empty_and_counted() -> None:
    model = Echo()
    model.bad = LETTERS.index("x") + 4
    one = translator(model)
    found = one.translate(["ab", "axb", "cd"], DecodeConfig(beam_size=2))
    assert [item.text for item in found] == ["ab", "", "cd"]
    assert found[1].score == -inf
    assert one.report.failed == 1


@pytest.mark.parametrize("how", list(LongLines))
def test_lines_that_are_not_cut_are_encoded_once(
    how: LongLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    encode = Letters.encode_batch

    def encode_batch(self: Letters, lines: Sequence[str]) -> list[list[int]]:
        seen.extend(lines)
        return encode(self, lines)

    monkeypatch.setattr(Letters, "encode_batch", encode_batch)
    one = translator(long_lines=how, max_source_tokens=5)
    one.translate(["ab", "abcdefgh", "", "cd"], GREEDY)
    assert [seen.count(line) for line in ("ab", "cd")] == [1, 1]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_translates_in_evaluation_mode_and_is_given_back_as_it_was(
    training: bool,
) -> None:
    model = Echo().train(training)
    translator(model).translate(["ab"], GREEDY)
    assert model.seen == [(False, True), 0]
    assert model.training is training
    model.seen.clear()
    translator(model, precision=torch.bfloat16).translate(["ab"], GREEDY)
    assert model.seen == [(False, True), torch.bfloat16]
    assert not torch.is_autocast_enabled("cpu")


def real_model(dtype: torch.dtype = torch.float64) -> Seq2SeqTransformer:
    """By default in float64, so that sizes of batches do not show."""
    torch.manual_seed(1)
    config = ModelConfig(
        mixer=LightConvConfig(encoder_kernel_sizes=[3], decoder_kernel_sizes=[3]),
        dim=16,
        ffn_dim=32,
        num_heads=4,
        encoder_layers=2,
        decoder_layers=2,
        tying=Tying.none,
    )
    model = Seq2SeqTransformer(
        config, src_vocab_size=VOCAB, tgt_vocab_size=VOCAB, src_pad_id=1, tgt_pad_id=1
    ).to(dtype)
    nn.init.normal_(model.output_weight)
    return model


def test_a_given_target_scores_as_much_as_when_it_is_forced() -> None:
    one = translator(real_model())
    lines = ["the quick brown fox", "jumps", "over the lazy dog", "a"]
    targets = ["fox", "a longer one", "", "dog"]
    scores = one.score(lines, targets)
    for line, target, found in zip(lines, targets, scores, strict=True):
        config = DecodeConfig(beam_size=1, max_length=len(target), min_length=0, length_penalty=0.0)
        (forced,) = one.translate([line], config, prefixes=[target])
        assert forced.text == target
        assert found.log_prob == pytest.approx(forced.score)
        assert found.tokens == len(target) + 1
        assert found.perplexity == pytest.approx(exp(-forced.score / found.tokens))
        assert one.score([line], [target])[0].log_prob == pytest.approx(found.log_prob)


def test_a_real_model_gives_the_same_for_any_batch() -> None:
    model = real_model()
    lines = ["the quick brown fox", "", "jumps", "over the lazy dog", "a", "jumps over"]
    search = DecodeConfig(beam_size=3, nbest=3, max_length_ratio=1.0, max_length_extra=3)
    together = translator(model).translate(lines, search)
    assert len({item.text for item in together}) > 3
    for size in (1, 2, 5):
        apart = translator(model).translate(lines, search, batch_size=size)
        assert [[text for text, _ in item.nbest] for item in apart] == [
            [text for text, _ in item.nbest] for item in together
        ]
        assert [item.score for item in apart] == pytest.approx([item.score for item in together])


def test_strict_outputs_depend_on_no_other_line() -> None:
    model, generator = real_model(torch.float32), random.Random(3)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog"]
    lines = [" ".join(generator.choices(words, k=generator.randint(1, 7))) for _ in range(60)]
    config = DecodeConfig(
        beam_size=4, nbest=4, max_length_ratio=0.0, max_length_extra=8, strict=True
    )
    expected = dict(zip(lines, translator(model).translate(lines, config), strict=True))
    for size in (1, 2, 3, 7, 16, 33, 64):
        generator.shuffle(lines)
        found = translator(model).translate(lines, config, batch_size=size, max_tokens=10**6)
        assert found == [expected[line] for line in lines]  # scores too, to the bit
