"""Searches in C++ find, bit for bit, what the definition finds with the same decoder."""

from collections.abc import Iterator
from functools import partial
from math import nan
from typing import Any

import pytest
import torch
from toy_models import IDS, mixer_model

from lightconv_mt.decode.beam_search import Entering, beam_search
from lightconv_mt.decode.config import DecodeConfig, LengthNormalization
from lightconv_mt.decode.native_search import has_options, native_search
from lightconv_mt.decode.trace import Hypothesis
from lightconv_mt.model.native_decoder import NativeDecoder, NativeState
from lightconv_mt.model.native_encoder import NativeEncoder
from lightconv_mt.model.transformer import Seq2SeqTransformer
from lightconv_mt.ops import Backend

VOCAB = 40
PREFIXES = [[], [7, 8], [], [9], []]
# Parts that enter one after the other, by the lengths of their sources.
LENGTHS = [[9, 9, 8], [7, 7], [6, 5, 5], [4], [2, 1, 1]]


build = partial(mixer_model, vocab_size=VOCAB)


def entering(
    model: Seq2SeqTransformer,
    decoder: NativeDecoder,
    beam: int,
    lengths: list[list[int]],
    prefixes: list[list[int]] | None,
) -> list[Entering[NativeState]]:
    encoder = NativeEncoder(model, torch.float32)
    generator = torch.Generator().manual_seed(3)

    def start(src: torch.Tensor, mask: torch.Tensor) -> NativeState:
        return decoder.begin(encoder.keys(src, mask), beam)

    parts = []
    for part in lengths:
        mask = torch.arange(max(part)) < torch.tensor(part)[:, None]
        src = torch.randint(4, VOCAB, mask.shape, generator=generator).masked_fill(~mask, 1)
        begun = prefixes and [prefixes[length % len(prefixes)] for length in part]
        parts.append(Entering(partial(start, src, mask), torch.tensor(part), begun))
    return parts


def both(
    config: DecodeConfig,
    *,
    model: Seq2SeqTransformer | None = None,
    lengths: list[list[int]] | None = None,
    prefixes: list[list[int]] | None = None,
    room: tuple[int, int] = (6, 40),
) -> tuple[list[list[Hypothesis]], list[list[Hypothesis]]]:
    """What C++ and the definition find."""
    model = model or build("lightconv")
    decoder, lengths = NativeDecoder(model, torch.float32), lengths or LENGTHS
    limits = {"max_sentences": room[0], "max_source_tokens": room[1]}
    prepare = partial(entering, model, decoder, config.beam_size, lengths, prefixes)
    with torch.inference_mode():
        found = native_search(decoder, prepare(), ids=IDS, config=config, **limits)
        first, *others = prepare()
        expected = beam_search(
            decoder.decode_step,
            first.start(),
            src_lengths=first.src_lengths,
            ids=IDS,
            config=config,
            prefixes=first.prefixes,
            backend=Backend.native,
            entering=others,
            **limits,
        )
    assert sum(map(len, found)) > 0
    return found, expected


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("beam", [1, 2, 5])
@pytest.mark.parametrize("name", ["lightconv", "dynamicconv", "attention"])
def test_beams(name: str, beam: int) -> None:
    # More tokens than the decoder of attention has room for at first.
    config = DecodeConfig(beam_size=beam, nbest=beam, max_length_ratio=3.0, min_length=20)
    found, expected = both(config, model=build(name, scale=0.2))
    assert found == expected
    assert max(len(best.tokens) for best, *_ in found) > 33


@pytest.mark.parametrize(
    "options",
    [
        {"early_stop": False, "max_length_extra": 12},
        {"early_stop": False, "word_reward": 0.7, "max_length_extra": 12},
        {"early_stop": False, "unk_penalty": -1.5, "max_length_extra": 12},
        {"unk_penalty": 2.0, "word_reward": -0.25},
        {"ban_unk": True, "min_length": 4},
        {"min_length_ratio": 1.5, "max_length": 6},
        {"max_length_ratio": 0.0, "max_length_extra": 0, "min_length": 0},
        {"length_normalization": LengthNormalization.gnmt, "length_penalty": 0.6},
        {"length_normalization": LengthNormalization.none, "min_length": 0},
        {"length_penalty": -2.0, "early_stop": False, "max_length_extra": 5},
    ],
)
@pytest.mark.parametrize("prefixes", [None, PREFIXES])
def test_options(options: dict[str, Any], prefixes: list[list[int]] | None) -> None:
    config = DecodeConfig(beam_size=4, nbest=3, **options)
    found, expected = both(config, prefixes=prefixes)
    assert found == expected


@pytest.mark.usefixtures("two_threads")
def test_threads() -> None:
    found, expected = both(DecodeConfig(beam_size=3, nbest=2, max_length=4))
    assert found == expected


@pytest.mark.parametrize("room", [(1, 1), (3, 1000), (1000, 20), (1000, 1000)])
def test_sentences_enter_when_there_is_room(room: tuple[int, int]) -> None:
    config = DecodeConfig(beam_size=3, nbest=2)
    found, expected = both(config, room=room)
    assert found == expected
    assert len(found) == sum(map(len, LENGTHS))


def test_equal_logits_and_beams_wider_than_the_vocabulary() -> None:
    model = build("lightconv")
    torch.nn.init.zeros_(model.output_weight)
    for beam in (4, 50):
        config = DecodeConfig(beam_size=beam, nbest=beam, max_length=3)
        found, expected = both(config, model=model, lengths=[[3, 3]])
        assert found == expected


def test_nothing_possible_is_no_hypothesis() -> None:
    model = build("lightconv")
    with torch.no_grad():
        model.src_embedding.weight[20, 3] = nan
    lengths = [[9] * 8]
    found, expected = both(DecodeConfig(beam_size=2, nbest=2), model=model, lengths=lengths)
    assert found == expected
    assert 0 < sum(not each for each in found) < 8


def test_what_it_lacks_is_named() -> None:
    assert not has_options(DecodeConfig())
    for options in ({"sampling": True}, {"beam_groups": 5}, {"no_repeat_ngram_size": 3}):
        assert has_options(DecodeConfig(**options))  # type: ignore[arg-type]
