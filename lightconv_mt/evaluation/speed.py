"""How fast a run translates: throughput, latency of single sentences, peak memory."""

import resource
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.decode.translations import TranslationReport
from lightconv_mt.decode.translator import Translator

PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class Latency:
    """Seconds from a sentence to its translation, one sentence at a time.

    Attributes:
        sentences: how many were timed.
        p50_seconds: the median.
        p95_seconds: 95 of 100 are at least as fast.
    """

    sentences: int
    p50_seconds: float
    p95_seconds: float


@dataclass(frozen=True)
class Speed:
    """Figures of one translation of a whole test set; loading the model does not count.

    Attributes:
        sentences: lines of the test set.
        tokens: of the translations, as the target tokenizer cuts them, without EOS.
        seconds: wall time.
        peak_memory_bytes: most resident memory of the process, libraries included.
        gpu_peak_memory_bytes: most that torch held on the GPU; None without one.
        device: where it was computed.
        threads: of the CPU.
        latency: None where it was not asked for.
    """

    sentences: int
    tokens: int
    seconds: float
    peak_memory_bytes: int
    gpu_peak_memory_bytes: int | None
    device: str
    threads: int
    latency: Latency | None

    @property
    def sentences_per_second(self) -> float:
        """Of the whole test set in batches."""
        return self.sentences / self.seconds

    @property
    def tokens_per_second(self) -> float:
        """Likewise."""
        return self.tokens / self.seconds

    @property
    def text(self) -> str:
        """All figures in a line."""
        memory = f"peak memory {self.peak_memory_bytes / 2**20:,.0f} MiB"
        if self.gpu_peak_memory_bytes is not None:
            memory += f", on the GPU {self.gpu_peak_memory_bytes / 2**20:,.0f} MiB"
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        parts = [
            f"{self.sentences:,} sentences in {self.seconds:.2f} s",
            f"{self.sentences_per_second:.1f} sentences/s",
            f"{self.tokens_per_second:.0f} tokens/s",
            f"{memory} ({self.device}, {threads})",
        ]
        if self.latency is not None:
            parts.append(
                f"one sentence at a time: p50 {1e3 * self.latency.p50_seconds:.1f} ms, "
                f"p95 {1e3 * self.latency.p95_seconds:.1f} ms of {self.latency.sentences:,}"
            )
        return ", ".join(parts)


def timed_translation(
    translator: Translator,
    lines: Sequence[str],
    config: DecodeConfig,
    *,
    max_tokens: int,
    latency_sentences: int = 0,
) -> tuple[list[str], Speed]:
    """Translate lines and measure it.

    The shortest line is translated before the clock starts, as first calls compile and choose
    kernels. Peak memory is that since `reset_peak_memory`.

    Args:
        translator: of the run.
        lines: the test set, at least one.
        config: the search.
        max_tokens: source tokens of a batch.
        latency_sentences: translated one by one afterwards, at most so many, spread over the test
            set; blank lines do not count.

    Returns:
        The translations and the figures.
    """
    filled = [line for line in lines if line.strip()]
    translator.translate(sorted(filled, key=len)[:1], config)
    translator.report = TranslationReport()  # of the lines that are timed
    started = perf_counter()
    found = translator.translate(lines, config, max_tokens=max_tokens)
    seconds = perf_counter() - started
    hypotheses = [translation.text for translation in found]
    gpu = translator.device.type == "cuda"
    speed = Speed(
        sentences=len(lines),
        tokens=sum(map(len, translator.tokenizers.tgt.encode_batch(hypotheses))),
        seconds=seconds,
        peak_memory_bytes=peak_memory_bytes(),
        gpu_peak_memory_bytes=torch.cuda.max_memory_allocated() if gpu else None,
        device=str(translator.device),
        threads=torch.get_num_threads(),
        latency=_latency(translator, filled, config, latency_sentences),
    )
    return hypotheses, speed


def _latency(
    translator: Translator, lines: Sequence[str], config: DecodeConfig, most: int
) -> Latency | None:
    count = min(most, len(lines))
    if not count:
        return None
    seconds = []
    for place in range(count):
        started = perf_counter()
        translator.translate([lines[place * len(lines) // count]], config)
        seconds.append(perf_counter() - started)
    p50, p95 = np.percentile(seconds, [50, 95]).tolist()
    return Latency(count, p50, p95)


def reset_peak_memory() -> None:
    """Forget earlier peaks; where the system cannot, a peak is of all that was done before too."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        PROCESS.joinpath("clear_refs").write_text("5")


def peak_memory_bytes() -> int:
    """Most memory the process has had resident since the last reset."""
    with suppress(OSError):
        for line in PROCESS.joinpath("status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
