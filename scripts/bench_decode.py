"""Time decoding: sentences a second of this engine beside a plain beam search, sides interleaved.

Every sentence of a file is translated with exactly --length tokens (EOS included), so that figures
depend on the models' sizes alone, which have random weights. The plain search runs the decoder over
the whole prefix at each step and sorts normalised probabilities. Both sides must find the same
tokens before anything is timed. Of several rounds the median counts; memory is the largest resident
size of the process after a case.
"""

import argparse
import platform
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

from lightconv_mt.data.lines import read_lines
from lightconv_mt.data.tokenizer import TokenizerConfig, TokenizerPair, build_tokenizers
from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.decode.translator import Translator
from lightconv_mt.mixers import MIXERS
from lightconv_mt.model.embedding import token_positions
from lightconv_mt.model.transformer import ModelConfig, Seq2SeqTransformer
from lightconv_mt.ops import Backend, resolve_backend
from lightconv_mt.train.memory import keep_freed_memory

SIZES = {"tiny": (4, 128, 256), "small": (6, 256, 1024)}  # layers a side, dim, ffn_dim
KERNELS = {4: [3, 7, 15, 31], 6: [3, 7, 15, 31, 31, 31]}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
Sides = dict[str, Callable[[], object]]


def main() -> None:
    """Print one line a case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sentences", help="a text file, .gz too")
    parser.add_argument("corpus", nargs="+", help="text files to learn the vocabulary from")
    parser.add_argument("--count", type=int, default=1000, help="sentences in batches of 64")
    parser.add_argument("--single", type=int, default=60, help="sentences one by one")
    parser.add_argument("--length", type=int, default=20)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain", type=int, default=64, help="sentences the plain side is given")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    lines = list(read_lines(arguments.sentences))
    corpus = [line for path in arguments.corpus for line in read_lines(path)]
    tokenizers = build_tokenizers(TokenizerConfig(vocab_size=arguments.vocabulary), corpus, [])
    print(
        f"{date.today()}  {platform.processor() or platform.machine()}  torch {torch.__version__}"
        f"  {arguments.threads} threads  {Path(arguments.sentences).name}  "
        f"{arguments.length} tokens each"
    )
    print(f"{'sentences/s':<34}{'fp32':>9}{'bf16':>9}{'plain fp32':>12}{'ratio':>8}{'peak MB':>9}")
    for size in arguments.sizes:
        for mixer in ("lightconv", "dynamicconv", "attention"):
            for beam_size, batch_size in ((5, 64), (1, 64), (5, 1), (1, 1)):
                bench(arguments, lines, tokenizers, size, mixer, beam_size, batch_size)


def bench(
    arguments: argparse.Namespace,
    lines: list[str],
    tokenizers: TokenizerPair,
    size: str,
    mixer: str,
    beam_size: int,
    batch_size: int,
) -> None:
    """Check both sides on one case, then time them in turn."""
    count = arguments.count if batch_size > 1 else arguments.single
    taken = lines[:count]
    translators = {
        name: build(tokenizers, size, mixer, dtype) for name, dtype in PRECISIONS.items()
    }
    length = arguments.length - 1
    config = DecodeConfig(
        beam_size=beam_size, min_length=length, max_length=length, early_stop=True
    )
    few = taken[: min(arguments.plain, batch_size)]
    ours = translators["fp32"].translate(few, config, batch_size=batch_size)
    theirs = plain_translations(translators["fp32"], few, config)
    same = sum(one.text == other for one, other in zip(ours, theirs, strict=True))
    assert same >= 0.95 * len(few), f"{same} of {len(few)} agree"  # ties and rounding aside
    sides: Sides = {
        name: lambda one=one: one.translate(taken, config, batch_size=batch_size)
        for name, one in translators.items()
    }
    sides["plain"] = lambda: plain_translations(translators["fp32"], few, config)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            done = len(few) if name == "plain" else len(taken)
            rates[name].append(done / (time.perf_counter() - start))
    fp32, bf16, plain = (statistics.median(rates[name]) for name in sides)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    title = f"{size} {mixer}, beam {beam_size}, batch {batch_size}"
    print(
        f"{title:<34}{fp32:9.1f}{bf16:9.1f}{plain:12.1f}{max(fp32, bf16) / plain:7.1f}x{peak:9.0f}",
        flush=True,
    )


def build(tokenizers: TokenizerPair, size: str, mixer: str, dtype: torch.dtype) -> Translator:
    """A translator with random weights, the same for every precision."""
    layers, dim, ffn_dim = SIZES[size]
    kernels = (
        {}
        if mixer == "attention"
        else {
            "encoder_kernel_sizes": KERNELS[layers],
            "decoder_kernel_sizes": KERNELS[layers],
            "encoder_glu": False,
            "decoder_glu": False,
        }
    )
    torch.manual_seed(1)
    model = Seq2SeqTransformer(
        ModelConfig(
            mixer=MIXERS[mixer](**kernels),
            dim=dim,
            ffn_dim=ffn_dim,
            num_heads=4,
            encoder_layers=layers,
            decoder_layers=layers,
        ),
        src_vocab_size=tokenizers.src.vocab_size,
        tgt_vocab_size=tokenizers.tgt.vocab_size,
        src_pad_id=tokenizers.src.ids.pad,
        tgt_pad_id=tokenizers.tgt.ids.pad,
        backend=resolve_backend(Backend.auto, device=torch.device("cpu")),
    )
    return Translator(model.eval(), tokenizers, device=torch.device("cpu"), precision=dtype)


def plain_translations(
    translator: Translator, lines: Sequence[str], config: DecodeConfig
) -> list[str]:
    """Translate one batch of lines, the decoder reading all of every prefix at every step."""
    model, ids = translator.model, translator.tokenizers.tgt.ids
    beam, length = config.beam_size, config.min_length
    sources = [
        [*row, translator.tokenizers.src.ids.eos]
        for row in translator.tokenizers.src.encode_batch(list(lines))
    ]
    lengths = torch.tensor([len(row) for row in sources])
    src = torch.full((len(sources), int(lengths.max())), ids.pad)
    for index, row in enumerate(sources):
        src[index, : len(row)] = torch.tensor(row)
    src_mask = torch.arange(src.shape[1]) < lengths[:, None]
    with torch.inference_mode():
        memory = model.encode(src, src_mask).repeat_interleave(beam, 0)
        src_mask = src_mask.repeat_interleave(beam, 0)
        tokens = torch.full((len(memory), 1), ids.bos)
        totals = torch.full((len(sources), beam), float("-inf"))
        totals[:, 0] = 0.0
        for _ in range(length):
            logp = _last_logp(model, tokens, memory, src_mask)
            logp[:, [ids.pad, ids.eos]] = float("-inf")
            scores = logp.view(len(sources), beam, -1) + totals[:, :, None]
            totals, places = scores.flatten(1).sort(dim=1, descending=True)
            totals, places = totals[:, :beam], places[:, :beam]
            rows = places // logp.shape[1] + torch.arange(0, len(tokens), beam)[:, None]
            words = places % logp.shape[1]
            tokens = torch.cat([tokens[rows.flatten()], words.view(-1, 1)], dim=1)
        totals = totals + _last_logp(model, tokens, memory, src_mask)[:, ids.eos].view_as(totals)
        best = totals.argmax(1) + torch.arange(0, len(tokens), beam)
    return [translator.tokenizers.tgt.decode(row) for row in tokens[best, 1:].tolist()]


def _last_logp(
    model: Seq2SeqTransformer, tokens: Tensor, memory: Tensor, src_mask: Tensor
) -> Tensor:
    mask = torch.ones_like(tokens, dtype=torch.bool)
    embedded = model.tgt_embedding(tokens, token_positions(mask))
    hidden = model.decoder(embedded, mask, memory, src_mask)
    return model.project(hidden[:, -1]).log_softmax(-1)


if __name__ == "__main__":
    main()
