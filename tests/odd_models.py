"""Models of every mixer with odd sizes, for tests of encoder and decoder in C++."""

from typing import Any

import torch
from torch import Tensor, nn

from lightconv_mt.mixers import MIXERS
from lightconv_mt.mixers.base import MixerConfig
from lightconv_mt.model.transformer import ModelConfig, Seq2SeqTransformer

VOCAB = 77
CONV = {"encoder_kernel_sizes": [3], "decoder_kernel_sizes": [1, 6]}
MODELS: dict[str, dict[str, Any]] = {
    "lightconv": {**CONV, "num_heads": 3},
    "dynamicconv": {**CONV, "num_heads": 3, "decoder_conv_dim": 33},
    "depthwise": {**CONV, "decoder_glu": False},
    "attention": {},
}


def build(name: str, *, pre_norm: bool = False, dim: int = 30, **fields: Any) -> Seq2SeqTransformer:
    mixer = MIXERS[name](**{**MODELS.get(name, {}), **fields})
    return build_model(mixer, pre_norm=pre_norm, dim=dim, encoder_layers=1)


def build_model(mixer: MixerConfig, **sizes: Any) -> Seq2SeqTransformer:
    torch.manual_seed(1)
    config = ModelConfig(mixer=mixer, ffn_dim=44, num_heads=2, decoder_layers=2, **sizes)
    ids = {"src_vocab_size": VOCAB, "tgt_vocab_size": VOCAB, "src_pad_id": 0, "tgt_pad_id": 0}
    model = Seq2SeqTransformer(config, **ids).eval()
    for parameter in model.parameters():  # biases and norms that matter
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=0.3, std=0.5)
    return model


def sources_of(lengths: list[int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(len(lengths))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    src = torch.randint(4, VOCAB, mask.shape, generator=generator)
    return src.masked_fill(~mask, 0), mask


def encoded(model: Seq2SeqTransformer, lengths: list[int]) -> tuple[Tensor, Tensor]:
    src, mask = sources_of(lengths)
    return model.encode(src, mask), mask
