"""CTranslate2 with the weights of one of our attention models, to time decoding beside."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor, nn

from lightconv_mt.mixers.attention import AttentionMixer
from lightconv_mt.model.embedding import FIRST_POSITION, sinusoidal_positions
from lightconv_mt.model.layers import FeedForward, SourceAttention, Sublayer
from lightconv_mt.model.transformer import Seq2SeqTransformer

LONGEST = 1024
# Sources with EOS, beam size, batch size and length give so many tokens for each source.
Translate = Callable[[list[list[int]], int, int, int], list[list[int]]]
_loaded: dict[
    tuple[str, bool], Any
] = {}  # by number format and whether one by one; of the process that only CTranslate2 computes in


@contextmanager
def open_peer(
    model: Seq2SeqTransformer, *, eos: int, bos: int, threads: int
) -> Iterator[dict[str, Translate]]:
    """The model in CTranslate2 by number format; nothing where that is not installed.

    It has a process of its own: threads of two OpenMP libraries get into each other's way. For
    sentences one by one it has one thread, with which it is faster than with more.
    """
    try:
        from ctranslate2.specs import transformer_spec
    except ImportError:
        yield {}
        return
    config = model.config
    spec = transformer_spec.TransformerSpec.from_config(
        (config.encoder_layers, config.decoder_layers), config.num_heads, pre_norm=config.pre_norm
    )
    names = [f"<{number}>" for number in range(model.output_weight.shape[0])]
    spec.register_source_vocabulary(names)
    spec.register_target_vocabulary(names)
    spec.config.bos_token = spec.config.decoder_start_token = names[bos]
    spec.config.eos_token, spec.config.unk_token = names[eos], names[0]
    positions = torch.arange(LONGEST)[None] + FIRST_POSITION
    for side, ours in ((spec.encoder, model.encoder), (spec.decoder, model.decoder)):
        side.position_encodings = transformer_spec.PositionEncoderSpec()
        side.position_encodings.encodings = _array(sinusoidal_positions(positions, config.dim)[0])
        for theirs, layer in zip(side.layer, ours.layers, strict=True):
            _fill_layer(theirs, layer)
    spec.encoder.embeddings[0].weight = _array(model.src_embedding.weight)
    spec.decoder.embeddings.weight = _array(model.tgt_embedding.weight)
    spec.decoder.projection.weight = _array(model.output_weight)
    with tempfile.TemporaryDirectory() as folder:
        spec.validate()
        spec.save(folder)
        with get_context("spawn").Pool(1, _load, (folder, threads)) as pool:
            yield {
                name: lambda *arguments, name=name: pool.apply(_translate, (name, *arguments))
                for name in ("float32", "int8")
            }


def _load(folder: str, threads: int) -> None:
    import ctranslate2

    for name in ("float32", "int8"):
        for single in (False, True):
            _loaded[name, single] = ctranslate2.Translator(
                folder,
                compute_type=name,
                inter_threads=1,
                intra_threads=1 if single else threads,
            )


def _translate(
    name: str, sources: list[list[int]], beam_size: int, batch_size: int, length: int
) -> list[list[int]]:
    found = _loaded[name, batch_size == 1].translate_batch(
        [[f"<{number}>" for number in source] for source in sources],
        beam_size=beam_size,
        max_batch_size=batch_size,
        min_decoding_length=length,
        max_decoding_length=length,
    )
    return [[int(token[1:-1]) for token in each.hypotheses[0]] for each in found]


def _fill_layer(theirs: Any, layer: Any) -> None:
    mixer, sublayer = layer.mixer, layer.mixer_sublayer
    assert isinstance(mixer, AttentionMixer)
    _fill_norm(theirs.self_attention.layer_norm, sublayer)
    _fill_linears(theirs.self_attention.linear[0], mixer.query, mixer.key, mixer.value)
    _fill_linears(theirs.self_attention.linear[1], mixer.output_projection)
    source = getattr(layer, "source_attention", None)
    if isinstance(source, SourceAttention):
        _fill_norm(theirs.attention.layer_norm, layer.source_sublayer)
        _fill_linears(theirs.attention.linear[0], source.query)
        _fill_linears(theirs.attention.linear[1], source.key, source.value)
        _fill_linears(theirs.attention.linear[2], source.output_projection)
    feed_forward = layer.feed_forward
    assert isinstance(feed_forward, FeedForward)
    _fill_norm(theirs.ffn.layer_norm, layer.feed_forward_sublayer)
    _fill_linears(theirs.ffn.linear_0, feed_forward.inner)
    _fill_linears(theirs.ffn.linear_1, feed_forward.outer)


def _fill_norm(theirs: Any, sublayer: Sublayer) -> None:
    theirs.gamma, theirs.beta = _array(sublayer.norm.weight), _array(sublayer.norm.bias)


def _fill_linears(theirs: Any, *parts: nn.Linear) -> None:
    theirs.weight = _array(torch.cat([part.weight for part in parts]))
    theirs.bias = _array(torch.cat([part.bias for part in parts]))


def _array(tensor: Tensor) -> Any:
    return tensor.detach().float().numpy()
