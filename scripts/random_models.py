"""Models with random weights, and searches with them, to time decoding."""

import torch

from lightconv_mt.data.tokenizer_base import SpecialIds
from lightconv_mt.decode.batch_search import BatchSearch
from lightconv_mt.mixers import MIXERS
from lightconv_mt.model.transformer import ModelConfig, Seq2SeqTransformer, Tying
from lightconv_mt.ops import Backend, resolve_backend

SIZES = {"tiny": (4, 128, 256), "small": (6, 256, 1024)}  # layers a side, dim, ffn_dim
KERNELS = {4: [3, 7, 15, 31], 6: [3, 7, 15, 31, 31, 31]}


def build(
    size: str, mixer: str, ids: SpecialIds, vocab_size: int, *, glu: bool, tying: Tying
) -> Seq2SeqTransformer:
    """A model with one vocabulary for both sides.

    Args:
        size: of SIZES.
        mixer: lightconv, dynamicconv or attention.
        ids: of the vocabulary,
        vocab_size: and how many it has.
        glu: whether the convolutions have gated inputs.
        tying: which embeddings are one; without any, no token is the likeliest everywhere.
    """
    layers, dim, ffn_dim = SIZES[size]
    convolution = {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in (("kernel_sizes", KERNELS[layers]), ("glu", glu))
    }
    torch.manual_seed(1)
    return Seq2SeqTransformer(
        ModelConfig(
            mixer=MIXERS[mixer](**({} if mixer == "attention" else convolution)),
            dim=dim,
            ffn_dim=ffn_dim,
            num_heads=4,
            encoder_layers=layers,
            decoder_layers=layers,
            tying=tying,
        ),
        src_vocab_size=vocab_size,
        tgt_vocab_size=vocab_size,
        src_pad_id=ids.pad,
        tgt_pad_id=ids.pad,
        backend=resolve_backend(Backend.auto, device=torch.device("cpu")),
    ).eval()


def search_of(model: Seq2SeqTransformer, ids: SpecialIds, precision: torch.dtype) -> BatchSearch:
    """A search on the CPU."""
    device = torch.device("cpu")
    return BatchSearch(model, src_ids=ids, tgt_ids=ids, device=device, precision=precision)
