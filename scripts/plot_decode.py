"""Draw how long decoding takes, and how much memory, by length of source and target."""

import argparse
import time
from multiprocessing import get_context
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch

from bench_decode import forget_peak, peak_megabytes
from lightconv_mt.data.tokenizer_base import SpecialIds
from lightconv_mt.decode.batch_search import Request
from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.model.transformer import Tying
from random_models import build, search_of

LENGTHS = [64, 128, 256, 512, 1024, 2048, 4096]
OTHER = 64  # tokens of the side whose length stays
IDS = SpecialIds(bos=0, pad=1, eos=2, unk=3)
LABELS = {"lightconv": "LightConv", "dynamicconv": "DynamicConv", "attention": "attention"}
VOCABULARY, BEAM = 8000, 5


def main() -> None:
    """Translate one sentence at every length: the tiny size, beam 5, one thread; the best of two.

    Memory is the most that was resident beyond what was before, of the same calls.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path, nargs="?", default=Path("decode.svg"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figure, panels = plt.subplots(2, 2, figsize=(8, 5.6), sharex=True, layout="constrained")
    pool = get_context("fork").Pool(1, maxtasksperchild=1)  # so that no memory is there already
    for name, label in LABELS.items():
        for column, side in enumerate(("source", "target")):
            taken = [pool.apply(measured, (name, length, side)) for length in LENGTHS]
            for length, (seconds, megabytes) in zip(LENGTHS, taken, strict=True):
                print(
                    f"{label:<12}{side:<8}{length:>6}{seconds:9.3f} s{megabytes:9.1f} MB",
                    flush=True,
                )
            for panel, values in zip(panels[:, column], zip(*taken, strict=True), strict=True):
                panel.loglog(LENGTHS, values, marker=".", label=label)
    for column, side in enumerate(("source", "target")):
        panels[0, column].set_title(f"{side} of so many tokens, the other side {OTHER}")
        panels[1, column].set(xlabel="tokens", xticks=LENGTHS, xticklabels=LENGTHS)
    for panel in panels.flat:
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0, 0].set_ylabel("seconds")
    panels[1, 0].set_ylabel("MB")
    panels[0, 0].legend()
    figure.savefig(arguments.picture)


def measured(name: str, length: int, side: str) -> tuple[float, float]:
    """Seconds and megabytes of one sentence."""
    model = build("tiny", name, IDS, VOCABULARY, glu=True, tying=Tying.all)
    search = search_of(model, IDS, torch.float32)
    source, target = (length, OTHER) if side == "source" else (OTHER, length)
    request = Request([5] * (source - 1) + [IDS.eos], 0, [])
    config = DecodeConfig(
        beam_size=BEAM, min_length=target - 1, max_length=target - 1, max_length_ratio=target
    )
    short = DecodeConfig(beam_size=BEAM, max_length=3)  # untimed: it packs the weights
    search.search([Request([IDS.eos], 0, [])], short, max_tokens=length, batch_size=1)
    best = float("inf")
    forget_peak()
    before = peak_megabytes()
    for _ in range(2):
        start = time.perf_counter()
        search.search([request], config, max_tokens=length, batch_size=1)
        best = min(best, time.perf_counter() - start)
    return best, peak_megabytes() - before


if __name__ == "__main__":
    main()
