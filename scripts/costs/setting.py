"""The model and the micro-batch that costs are told of: from the data, or random."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lightconv_mt.assemble import build_batcher, choose_device
from lightconv_mt.config import TrainRunConfig
from lightconv_mt.data.batching import Batch, collate
from lightconv_mt.data.corpus import read_corpus
from lightconv_mt.data.encoded import encode_corpus
from lightconv_mt.data.tokenizer import TRAINED_IDS
from lightconv_mt.errors import DataError
from lightconv_mt.model.transformer import Seq2SeqTransformer
from lightconv_mt.ops import resolve_backend
from lightconv_mt.run_folder import run_tokenizers


@dataclass(frozen=True)
class Setting:
    """What a step is made of.

    Attributes:
        model: with fresh weights, on the device to train on.
        batch: a micro-batch.
        origin: where its lengths come from.
    """

    model: Seq2SeqTransformer
    batch: Batch
    origin: str


def from_data(config: TrainRunConfig) -> Setting:
    """The micro-batch of the first epoch that is most like the mean; nothing goes to run_dir.

    Raises:
        DataError: when the data cannot be read.
    """
    try:
        tokenizers = run_tokenizers(Path(config.run_dir), config, save=False)
        pairs = encode_corpus(read_corpus(config.data), tokenizers)
    except DataError as error:
        raise DataError(f"{error}; --random needs no data") from error
    batcher = build_batcher(config, tokenizers, pairs)
    shapes = batcher.shapes(0)
    means = np.average(shapes[:, 1:3], axis=0, weights=shapes[:, 0])
    place = int(np.abs(shapes[:, 1:3] / means - 1).sum(axis=1).argmin())
    sizes = tokenizers.src.vocab_size, tokenizers.tgt.vocab_size
    pads = tokenizers.src.ids.pad, tokenizers.tgt.ids.pad
    src, tgt = pairs.src_lengths.mean(), pairs.tgt_lengths.mean()
    return Setting(
        _build(config, sizes, pads),
        batcher.batch(0, place),
        f"training pairs have {src:.1f} and {tgt:.1f} tokens on average",
    )


def from_lengths(config: TrainRunConfig, src: int, tgt: int) -> Setting:
    """As many sentences of these lengths as `batch` allows, of random tokens."""
    size, ids = config.tokenizer.vocab_size, TRAINED_IDS
    count = max(1, config.batch.max_tokens // max(src, tgt))
    count = min(count, config.batch.max_sentences or count)
    sides = (torch.randint(ids.unk, size, (count, length)).tolist() for length in (src, tgt))
    batch = collate([*zip(*sides, strict=True)], ids, ids)
    return Setting(_build(config, (size, size), (ids.pad, ids.pad)), batch, "random tokens")


def _build(
    config: TrainRunConfig, sizes: tuple[int, int], pads: tuple[int, int]
) -> Seq2SeqTransformer:
    device = choose_device(config.runtime)
    model = Seq2SeqTransformer(
        config.model,
        src_vocab_size=sizes[0],
        tgt_vocab_size=sizes[1],
        src_pad_id=pads[0],
        tgt_pad_id=pads[1],
        backend=resolve_backend(config.runtime.kernels, device=device),
    )
    return model.to(device)
