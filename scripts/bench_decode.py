"""Time decoding: sentences a second of this engine beside a plain beam search and CTranslate2.

Every sentence of a file is translated with exactly --length tokens (EOS included), so that figures
depend on the models' sizes alone, which have random weights. The plain search runs the decoder over
the whole prefix at each step and sorts normalised probabilities. CTranslate2, where it is
installed, has the weights of the attention model and makes as many steps. Before anything is timed,
float32 must find the tokens of the plain search, and CTranslate2 those of float32. "listed" is bf16
with a shortlist: each sentence has --listed tokens, drawn at random for those of its source. Sides
take turns; of several rounds the median counts. Memory is the most that was resident in a case.
"""

import argparse
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from arguments import positive
from ctranslate2_peer import Translate, open_peer
from lightconv_mt.data.lines import read_lines
from lightconv_mt.data.tokenizer import TokenizerConfig
from lightconv_mt.data.tokenizer_pair import TokenizerPair, build_tokenizers
from lightconv_mt.decode import batch_search, native_search
from lightconv_mt.decode.batch_search import BatchSearch, Request
from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.decode.shortlist import Shortlist
from lightconv_mt.model.embedding import token_positions
from lightconv_mt.model.transformer import Seq2SeqTransformer, Tying
from lightconv_mt.ops.search_steps import Stretch
from lightconv_mt.train.memory import keep_freed_memory
from random_models import SIZES, build, search_of

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
MODEL: dict[str, Any] = {"glu": False, "tying": Tying.none}
COMPARED = ("lightconv", "dynamicconv", "attention")
PEERS = {"float32": "float32", "int8": "int8 "}  # of CTranslate2, by its own names
COLUMNS = (*PRECISIONS, "listed", "plain", *PEERS.values())
Sources = list[list[int]]


def main() -> None:
    """Print one line a case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sentences", nargs="?", help="a text file, .gz too; default Multi30k's")
    parser.add_argument("corpus", nargs="*", help="text files to learn the vocabulary from")
    parser.add_argument("--count", type=positive, default=1000, help="sentences in batches of 64")
    parser.add_argument("--single", type=positive, default=60, help="sentences one by one")
    parser.add_argument("--length", type=positive, default=20)
    parser.add_argument("--vocabulary", type=positive, default=8000)
    parser.add_argument("--listed", type=positive, default=500, help="tokens of a shortlist")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument(
        "--plain", type=positive, default=64, help="sentences the plain side is given"
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--mixers", nargs="+", choices=COMPARED, default=list(COMPARED))
    arguments = parser.parse_args()
    if not arguments.corpus:
        if arguments.sentences or "LCMT_DATA" not in os.environ:
            parser.error("give sentences and a corpus, or let LCMT_DATA hold multi30k/*.gz")
        folder = Path(os.environ["LCMT_DATA"]) / "multi30k"
        arguments.sentences = folder / "test_2016_flickr.en.gz"
        arguments.corpus = [folder / f"train.{side}.gz" for side in ("en", "de")]
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    lines = list(read_lines(arguments.sentences))[: arguments.count]
    corpus = [line for path in arguments.corpus for line in read_lines(path)]
    tokenizers = build_tokenizers(TokenizerConfig(vocab_size=arguments.vocabulary), corpus, [])
    eos = tokenizers.src.ids.eos
    sources = [[*row, eos] for row in tokenizers.src.encode_batch(lines)]
    print(
        f"{date.today()}  {platform.processor() or platform.machine()}  torch {torch.__version__}"
        f"  {arguments.threads} threads  {Path(arguments.sentences).name}  "
        f"{arguments.length} tokens each"
    )
    print(f"{'':<36}{'sentences/s':>27}{'':>18}{'CTranslate2':>18}{'peak':>8}")
    print(f"{'':<36}" + "".join(f"{name:>9}" for name in COLUMNS) + f"{'MB':>8}")
    for size in arguments.sizes:
        for mixer in arguments.mixers:
            bench(arguments, sources, tokenizers, size, mixer)
    limits = {name: matrix_speed(dtype) for name, dtype in list(PRECISIONS.items())[:2]}
    print("\nwhere the milliseconds of a step of 64 sentences go, beam 5, LightConv")
    print(
        f"{'':<14}{'encoder':>9}{'decoder':>9}{'ranking':>9}{'books':>9}{'decoder GFLOP/s':>17}"
        f"{'torch.mm':>10}"
    )
    for size in arguments.sizes:
        for name in PRECISIONS:
            show_parts(arguments, sources, tokenizers, size, name, limits)


def bench(
    arguments: argparse.Namespace,
    sources: Sources,
    tokenizers: TokenizerPair,
    size: str,
    mixer: str,
) -> None:
    """Check all sides on every case of one model, then time them in turn."""
    ids = tokenizers.tgt.ids
    model = build(size, mixer, ids, tokenizers.tgt.vocab_size, **MODEL)
    searches = {name: search_of(model, ids, dtype) for name, dtype in PRECISIONS.items()}
    shortlist = shortlist_of(tokenizers, sources, arguments.listed)
    with ExitStack() as stack:
        peers: dict[str, Translate] = {}
        if mixer == "attention":
            peer = open_peer(model, eos=ids.eos, bos=ids.bos, threads=arguments.threads)
            peers = stack.enter_context(peer)
        check(arguments, sources, searches["fp32"], peers)
        for beam_size, batch_size in ((5, 64), (1, 64), (5, 1), (1, 1)):
            taken = sources if batch_size > 1 else sources[: arguments.single]
            few = sources[: min(arguments.plain, batch_size)]
            config = config_of(arguments, beam_size)
            plain = partial(plain_search, model, few, config, ids.bos, ids.eos)
            sides: dict[str, tuple[int, Callable[[], object]]] = {
                name: (len(taken), partial(find, search, taken, config, batch_size))
                for name, search in searches.items()
            }
            listed = partial(find, searches["bf16"], taken, config, batch_size, shortlist)
            sides["listed"] = len(taken), listed
            sides["plain"] = len(few), plain
            for name, theirs in peers.items():
                call = partial(theirs, taken, beam_size, batch_size, arguments.length)
                sides[PEERS[name]] = len(taken), call
            rates, peak = timed(sides, arguments.rounds)
            cells = [f"{rates[name]:9.1f}" if name in rates else f"{'':9}" for name in COLUMNS]
            title = f"{size} {mixer}, beam {beam_size}, batch {batch_size}"
            print(f"{title:<36}" + "".join(cells) + f"{peak:8.0f}", flush=True)


def timed(
    sides: dict[str, tuple[int, Callable[[], object]]], rounds: int
) -> tuple[dict[str, float], float]:
    """Sentences a second of each side, medians of rounds in turn, and peak memory in MB."""
    rates = defaultdict(list)
    forget_peak()
    for _ in range(rounds):
        for name, (count, side) in sides.items():
            start = time.perf_counter()
            side()
            rates[name].append(count / (time.perf_counter() - start))
    return {name: statistics.median(each) for name, each in rates.items()}, peak_megabytes()


def check(
    arguments: argparse.Namespace,
    sources: Sources,
    search: BatchSearch,
    peers: dict[str, Translate],
) -> None:
    """Stop unless all sides find the same tokens, ties and rounding aside."""
    few = sources[: arguments.plain]
    model = search.model
    assert isinstance(model, Seq2SeqTransformer)
    for beam_size in (5, 1):
        config = config_of(arguments, beam_size)
        ours = [list(found[0].tokens) for found in find(search, few, config, 64)]
        plain = plain_search(model, few, config, search.tgt_ids.bos, search.tgt_ids.eos)
        same = sum(one == other for one, other in zip(ours, plain, strict=True))
        assert same >= 0.95 * len(few), f"{same} of {len(few)} agree"
    if "float32" in peers:  # greedy, as it chooses between beams without EOS
        theirs = peers["float32"](few, 1, 64, arguments.length)
        same = sum(one[:-1] == other[:-1] for one, other in zip(ours, theirs, strict=True))
        assert same >= 0.95 * len(few), f"{same} of {len(few)} agree with CTranslate2"


def show_parts(
    arguments: argparse.Namespace,
    sources: Sources,
    tokenizers: TokenizerPair,
    size: str,
    name: str,
    limits: dict[str, float],
) -> None:
    """Time the parts of a search with clocks around them; medians of the rounds."""
    ids = tokenizers.tgt.ids
    model = build(size, "lightconv", ids, tokenizers.tgt.vocab_size, **MODEL)
    search = search_of(model, ids, PRECISIONS[name])
    config = config_of(arguments, 5)
    find(search, sources[:64], config, 64)
    rounds = []
    for _ in range(arguments.rounds):
        spent: dict[str, float] = defaultdict(float)
        with (
            clock(spent, "encoder", search, "_begin"),
            clock_steps(spent),
        ):
            start = time.perf_counter()
            find(search, sources, config, 64)
            spent["all"] = time.perf_counter() - start
        rounds.append(spent)
    steps = arguments.length * len(sources) / 64
    parts = {
        part: 1e3 * statistics.median(spent[part] for spent in rounds) / steps for part in rounds[0]
    }
    parts["books"] = parts.pop("all") - sum(parts.values())
    speed = 2 * 320 * products(model) / (1e6 * parts["decoder"])
    limit = f"{limits[name]:10.0f}" if name in limits else ""
    cells = "".join(f"{parts[part]:9.2f}" for part in ("encoder", "decoder", "ranking", "books"))
    print(f"{size + ' ' + name:<14}{cells}{speed:17.0f}{limit}", flush=True)


def products(model: Seq2SeqTransformer) -> int:
    """Multiply-adds of the matrices that a row meets in a step."""
    matrices = sum(
        module.weight.numel() for module in model.decoder.modules() if isinstance(module, nn.Linear)
    )
    for layer in model.decoder.layers:  # those of the source are not multiplied at each step
        source = layer.source_attention
        matrices -= source.key.weight.numel() + source.value.weight.numel()
    return matrices + model.output_weight.numel()


def matrix_speed(dtype: torch.dtype) -> float:
    """GFLOP/s of a large product of torch, the best of ten."""
    left, right = torch.randn(2, 1536, 1536).to(dtype)
    best = 0.0
    for _ in range(10):
        start = time.perf_counter()
        left @ right
        best = max(best, 2 * 1536**3 / (time.perf_counter() - start) / 1e9)
    return best


@contextmanager
def clock(spent: dict[str, float], part: str, owner: object, name: str) -> Iterator[None]:
    """Add up the time in a function."""
    function = getattr(owner, name)

    def timed(*arguments: object, **options: object) -> object:
        start = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            spent[part] += time.perf_counter() - start

    with mock.patch.object(owner, name, timed):
        yield


@contextmanager
def clock_steps(spent: dict[str, float]) -> Iterator[None]:
    """Add up what the steps in C++ say of their parts."""
    steps = native_search.search_steps

    def timed(*arguments: Any, **options: Any) -> Stretch:
        found = steps(*arguments, **options)
        spent["decoder"] += found.decoder_seconds
        spent["ranking"] += found.choice_seconds
        return found

    with mock.patch.object(native_search, "search_steps", timed):
        yield


def config_of(arguments: argparse.Namespace, beam_size: int) -> DecodeConfig:
    """Exactly as many tokens as asked for."""
    length = arguments.length - 1
    return DecodeConfig(beam_size=beam_size, min_length=length, max_length=length)


def find(
    search: BatchSearch,
    sources: Sources,
    config: DecodeConfig,
    batch_size: int,
    shortlist: Shortlist | None = None,
) -> list[list[batch_search.Hypothesis]]:
    """What this engine finds."""
    requests = [Request(source, line, []) for line, source in enumerate(sources)]
    return search.search(
        requests, config, max_tokens=4096, batch_size=batch_size, shortlist=shortlist
    )


def shortlist_of(tokenizers: TokenizerPair, sources: Sources, listed: int) -> Shortlist:
    """A fifth of the tokens goes with every source, the others are spread over its tokens."""
    vocab, ids = tokenizers.tgt.vocab_size, tokenizers.tgt.ids
    generator = np.random.default_rng(1)
    distinct = statistics.mean(len(set(source)) for source in sources)
    each = round(0.8 * listed / distinct)
    table = generator.integers(0, vocab, (tokenizers.src.vocab_size, each), np.int32)
    return Shortlist(table, generator.permutation(vocab)[: listed // 5], ids, vocab)


def forget_peak() -> None:
    """Let Linux count the most resident memory anew."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def peak_megabytes() -> float:
    """The most resident memory since then; NaN where there is no /proc."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if "VmHWM" in line), float("nan"))


def plain_search(
    model: Seq2SeqTransformer, sources: Sources, config: DecodeConfig, bos: int, eos: int
) -> list[list[int]]:
    """Search one batch, the decoder reading all of every prefix at every step."""
    beam, length, pad = config.beam_size, config.min_length, model.tgt_embedding.pad_id
    src, src_mask = batch_search.padded(sources, pad, torch.device("cpu"))
    with torch.inference_mode():
        memory = model.encode(src, src_mask).repeat_interleave(beam, 0)
        src_mask = src_mask.repeat_interleave(beam, 0)
        tokens = torch.full((len(memory), 1), bos)
        totals = torch.full((len(sources), beam), float("-inf"))
        totals[:, 0] = 0.0
        for _ in range(length):
            logp = _last_logp(model, tokens, memory, src_mask)
            logp[:, [pad, eos]] = float("-inf")
            scores = logp.view(len(sources), beam, -1) + totals[:, :, None]
            totals, places = scores.flatten(1).sort(dim=1, descending=True)
            totals, places = totals[:, :beam], places[:, :beam]
            rows = places // logp.shape[1] + torch.arange(0, len(tokens), beam)[:, None]
            words = places % logp.shape[1]
            tokens = torch.cat([tokens[rows.flatten()], words.view(-1, 1)], dim=1)
        totals = totals + _last_logp(model, tokens, memory, src_mask)[:, eos].view_as(totals)
        best = totals.argmax(1) + torch.arange(0, len(tokens), beam)
    return [[*row, eos] for row in tokens[best, 1:].tolist()]


def _last_logp(
    model: Seq2SeqTransformer, tokens: Tensor, memory: Tensor, src_mask: Tensor
) -> Tensor:
    mask = torch.ones_like(tokens, dtype=torch.bool)
    embedded = model.tgt_embedding(tokens, token_positions(mask))
    hidden = model.decoder(embedded, mask, memory, src_mask)
    return model.project(hidden[:, -1]).log_softmax(-1)


if __name__ == "__main__":
    main()
