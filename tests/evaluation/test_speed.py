"""What is timed, and that nothing else is."""

import mmap
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.decode.translations import Translation, TranslationReport
from lightconv_mt.evaluation.speed import peak_memory_bytes, reset_peak_memory, timed_translation


class Sleeper:
    """Takes ten milliseconds a line and a second at first; its output says what line it was.

    The time is made up: nothing else takes any.
    """

    device, now = torch.device("cpu"), 0.0

    def __init__(self) -> None:
        """Start cold."""
        self.report, self.calls = TranslationReport(), []
        tokenizer = SimpleNamespace(encode_batch=lambda lines: [line.split() for line in lines])
        self.tokenizers = SimpleNamespace(tgt=tokenizer)

    def translate(self, lines: list[str], config: object, **options: Any) -> list[Translation]:
        self.now += 0.01 * len(lines) + (0.0 if self.calls else 1.0)
        self.calls.append(list(lines))
        texts = [f"line {self.report.lines + place}" for place in range(len(lines))]
        self.report.lines += len(lines)
        return [Translation(text, 0.0, ()) for text in texts]


def test_throughput_leaves_out_the_start_and_latency_is_of_single_sentences(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    translator: Any = Sleeper()
    monkeypatch.setattr("lightconv_mt.evaluation.speed.perf_counter", lambda: translator.now)
    lines = ["ein langer Satz", "", "kurz", "noch einer"] * 5
    hypotheses, speed = timed_translation(
        translator, lines, DecodeConfig(), max_tokens=99, latency_sentences=4
    )
    assert hypotheses == [f"line {place}" for place in range(20)]  # as without the warm-up
    assert translator.calls[0] == ["kurz"]
    assert translator.calls[1] == lines
    assert len(translator.calls) == 2 + 4
    assert all(len(call) == 1 and call[0] for call in translator.calls[2:])
    assert len({*map(tuple, translator.calls[2:])}) == 3  # spread over the set
    assert (speed.sentences, speed.tokens) == (20, 40)
    assert speed.seconds == pytest.approx(0.2)
    assert speed.sentences_per_second == 20 / speed.seconds
    assert speed.tokens_per_second == 40 / speed.seconds
    assert speed.latency is not None and speed.latency.sentences == 4
    assert speed.latency.p50_seconds == pytest.approx(0.01)
    assert speed.latency.p95_seconds == pytest.approx(0.01)
    assert "one sentence at a time: p50 10.0 ms" in speed.text
    assert "(cpu, 1 thread)" in speed.text


def test_no_latency_unless_asked_for_and_never_more_sentences_than_there_are() -> None:
    translator: Any = Sleeper()
    _, speed = timed_translation(translator, ["a", " "], DecodeConfig(), max_tokens=9)
    assert speed.latency is None and "one sentence" not in speed.text
    _, speed = timed_translation(
        translator, ["a", " "], DecodeConfig(), max_tokens=9, latency_sentences=200
    )
    assert speed.latency is not None and speed.latency.sentences == 1


def test_peak_memory_grows_with_what_is_held_and_is_forgotten() -> None:
    reset_peak_memory()
    before = peak_memory_bytes()
    # Not by malloc, which other tests may have told to keep what is freed.
    with mmap.mmap(-1, 2**27) as held:  # 128 MiB
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
    grown = peak_memory_bytes()
    assert grown - before > 100 * 2**20
    reset_peak_memory()
    if peak_memory_bytes() == grown:
        pytest.skip("this system cannot forget a peak")
    assert peak_memory_bytes() < grown - 100 * 2**20
