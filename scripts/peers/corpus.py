"""Multi30k in pieces for every side: one SentencePiece model, and the same pairs in the same order.

The folder holds `tokenizer.model`; `pairs.npz` with ids, EOS at the end of each sentence; for
fairseq `dict.txt`, whose numbers are the tokenizer's, and `train.en` and `train.de` in pieces.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TOKENIZER = "tokenizer.model"
Ids = NDArray[np.int32]


def prepare(folder: Path) -> int:
    """Write the folder's files; returns the target tokens of an epoch, EOS included.

    Raises:
        LcmtError: when Multi30k is not where `configs/data/multi30k.yaml` says.
    """
    # Imported here, so that a peer that reads the pairs has nothing of this in memory.
    from lightconv_mt.cli import ROOTS
    from lightconv_mt.compose import compose
    from lightconv_mt.config import TrainRunConfig, to_typed
    from lightconv_mt.data.corpus import read_corpus
    from lightconv_mt.data.encoded import encode_corpus
    from lightconv_mt.run_folder import run_tokenizers
    from lightconv_mt.schemas import read_root

    root, registers = read_root(ROOTS["train"])
    words = [f"run_dir={folder}", f"data.cache_dir={folder}", "data=multi30k", "tokenizer=bpe_8k"]
    [plain] = compose("train", words, root=root, registers=registers)
    config = to_typed(TrainRunConfig, plain)
    tokenizers = run_tokenizers(folder, config)
    pairs = encode_corpus(read_corpus(config.data), tokenizers)
    rows = pairs.get(range(len(pairs)))
    np.savez(
        folder / "pairs.npz",
        src=np.concatenate([src for src, _ in rows]),
        tgt=np.concatenate([tgt for _, tgt in rows]),
        src_lengths=pairs.src_lengths,
        tgt_lengths=pairs.tgt_lengths,
    )
    size = tokenizers.tgt.vocab_size
    # fairseq has BOS, padding, EOS and the unknown piece before these, as the tokenizer has.
    pieces = tokenizers.tgt.pieces(range(4, size))
    (folder / "dict.txt").write_text("".join(f"{piece} 1\n" for piece in pieces))
    for place, language in enumerate(("en", "de")):
        with (folder / f"train.{language}").open("w") as file:
            for row in rows:
                file.write(" ".join(tokenizers.tgt.pieces(row[place][:-1].tolist())) + "\n")
    return int(pairs.tgt_lengths.sum())


def read_pairs(folder: Path) -> list[tuple[Ids, Ids]]:
    """Ids of all pairs, EOS at the end of both sides."""
    with np.load(folder / "pairs.npz") as file:
        sides = [
            np.split(file[side], np.cumsum(file[f"{side}_lengths"])[:-1]) for side in ("src", "tgt")
        ]
    return list(zip(*sides, strict=True))


def draw_batches(
    pairs: list[tuple[Ids, Ids]], *, max_tokens: int, seed: int
) -> Iterator[list[tuple[Ids, Ids]]]:
    """Batches of pairs of like length without end, those of an epoch in random order."""
    generator = np.random.default_rng(seed)
    while True:
        order = generator.permutation(len(pairs))
        lengths = [max(map(len, pairs[index])) for index in order]
        batches: list[list[tuple[Ids, Ids]]] = [[]]
        for place in np.argsort(lengths, kind="stable"):
            if batches[-1] and lengths[place] * (len(batches[-1]) + 1) > max_tokens:
                batches.append([])
            batches[-1].append(pairs[order[place]])
        for number in generator.permutation(len(batches)):
            yield batches[number]
