"""Small real models with random weights, and a tokenizer of words for tests of decoding."""

from collections.abc import Sequence
from typing import Any

import torch
from cpp_kernels import need_library
from torch import nn

from lightconv_mt.data.tokenizer_base import SpecialIds
from lightconv_mt.mixers import MIXERS
from lightconv_mt.mixers.lightconv import LightConvConfig
from lightconv_mt.model.transformer import ModelConfig, Seq2SeqTransformer, Tying
from lightconv_mt.ops import Backend

# Decoders begin with EOS, so that every other output of a model is text, or the unknown token.
IDS = SpecialIds(bos=2, pad=1, eos=2, unk=0)
# As SentencePiece spells them: the line begins a word.
TOKENS = ["\u2581a", "\u2581b", "\u2581c", "\u2581d", "x", "y"]


class Words:
    """Every token stands for one of TOKENS; text that has none of them is left out."""

    ids = IDS
    vocab_size = len(TOKENS) + 3
    digest = "words"

    def encode_batch(self, lines: Sequence[str]) -> list[list[int]]:
        return [[3 + TOKENS.index(piece) for piece in self.spelled(line)] for line in lines]

    def spelled(self, line: str) -> list[str]:
        marked = [
            f"\u2581{char}" if not place and f"\u2581{char}" in TOKENS else char
            for word in line.split()
            for place, char in enumerate(word)
        ]
        return [piece for piece in marked if piece in TOKENS]

    def spell_text(self, text: str) -> list[str]:
        return [piece[-1] for piece in self.spelled(text)]

    def spell(self, ids: Sequence[int]) -> list[str]:
        return [TOKENS[number - 3][-1] if number > 2 else "" for number in ids]

    def decode(self, ids: Sequence[int]) -> str:
        text = "".join(TOKENS[number - 3] for number in ids if number > 2)
        return text.replace("\u2581", " ").removeprefix(" ")


class Pair:
    """The same on both sides."""

    src = tgt = Words()
    digest = "pair of words"


def pair_of() -> Any:
    return Pair()


def model_of(
    *,
    seed: int = 1,
    decoder_layers: int = 2,
    backend: Backend = Backend.torch,
    **values: Any,
) -> Seq2SeqTransformer:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"dim": 16, "ffn_dim": 32, "num_heads": 4, "encoder_layers": 2}
    config = ModelConfig(
        mixer=LightConvConfig(encoder_kernel_sizes=[3], decoder_kernel_sizes=[3]),
        decoder_layers=decoder_layers,
        tying=Tying.none,
        **{**sizes, **values},
    )
    size = Words.vocab_size
    model = Seq2SeqTransformer(
        config,
        src_vocab_size=size,
        tgt_vocab_size=size,
        src_pad_id=1,
        tgt_pad_id=1,
        backend=backend,
    )
    nn.init.normal_(model.output_weight)
    for layer in model.decoder.layers:  # or attention is nearly even
        nn.init.normal_(layer.source_attention.query.weight)
    return model.eval()


def mixer_model(
    name: str,
    vocab_size: int,
    *,
    backend: Backend = Backend.native,
    scale: float = 1.0,
    sides: dict[str, Any] | None = None,
    **fields: Any,
) -> Seq2SeqTransformer:
    """A model of any mixer; tests of C++ are skipped where there is none."""
    if backend is Backend.native:
        need_library()
    torch.manual_seed(4)
    kernels = {"encoder_kernel_sizes": [3], "decoder_kernel_sizes": [5]} if "conv" in name else {}
    config = ModelConfig(
        mixer=MIXERS[name](**kernels, **fields),
        dim=16,
        ffn_dim=24,
        num_heads=2,
        encoder_layers=1,
        decoder_layers=2,
        tying=Tying.none,
        **(sides or {}),
    )
    sizes = {"src_vocab_size": vocab_size, "tgt_vocab_size": vocab_size}
    model = Seq2SeqTransformer(config, **sizes, src_pad_id=1, tgt_pad_id=1, backend=backend)
    nn.init.normal_(model.output_weight, std=scale)
    return model.eval()
