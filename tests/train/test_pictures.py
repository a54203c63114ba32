"""Pictures show what the model computes."""

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import font_manager, rcParams
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry
from torch import Tensor

from lightconv_mt.data.batching import Batch
from lightconv_mt.mixers import MIXERS, MixerConfig
from lightconv_mt.mixers.attention import AttentionConfig
from lightconv_mt.mixers.conv_block import ConvBlockConfig
from lightconv_mt.mixers.dynamicconv import DynamicConvMixer
from lightconv_mt.mixers.lightconv import LightConvMixer
from lightconv_mt.model.transformer import ModelConfig, Seq2SeqTransformer
from lightconv_mt.train import pictures
from lightconv_mt.train.pictures import draw_model

WIDTHS = [3, 5]
SRC, TGT = ["a", "b", "c", "</s>"], ["<s>", "x", "y"]


def small(mixer: str, widths: list[int]) -> MixerConfig:
    config = MIXERS[mixer]()
    if isinstance(config, ConvBlockConfig):
        config.encoder_kernel_sizes, config.decoder_kernel_sizes = widths, widths
    return config


def build(
    mixer: str, *, widths: list[int] = WIDTHS, **values: Any
) -> tuple[Seq2SeqTransformer, Batch]:
    config = small(mixer, widths)
    sizes = {"dim": 8, "ffn_dim": 12, "num_heads": 2, "encoder_layers": 2, "decoder_layers": 2}
    model = Seq2SeqTransformer(
        ModelConfig(mixer=config, **{**sizes, **values}),
        src_vocab_size=9,
        tgt_vocab_size=9,
        src_pad_id=1,
        tgt_pad_id=1,
    ).eval()
    src, tgt = torch.tensor([[4, 5, 6, 2]]), torch.tensor([[0, 7, 8]])
    batch = Batch(
        src=src,
        src_mask=torch.ones_like(src, dtype=torch.bool),
        tgt_in=tgt,
        tgt_out=tgt,
        tgt_mask=torch.ones_like(tgt, dtype=torch.bool),
        num_tokens=3,
        indices=[0],
    )
    return model, batch


def panels(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(axis.images[0].get_array()) for axis in figure.axes]


def labels(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


@pytest.mark.parametrize("mixer", sorted(MIXERS))
def test_source_attention_is_drawn_layer_by_layer(mixer: str) -> None:
    model, batch = build(mixer)
    figure = draw_model(model, batch, src_pieces=SRC, tgt_pieces=TGT)["source_attention"]
    assert [panel.shape for panel in panels(figure)] == [(3, 4), (3, 4)]
    for panel in panels(figure):
        np.testing.assert_allclose(panel.sum(-1), 1.0, atol=1e-5)
    assert labels(figure) == TGT


def test_lightconv_kernels_are_the_normalised_weights() -> None:
    model, batch = build("lightconv")
    drawn = draw_model(model, batch, src_pieces=SRC, tgt_pieces=TGT)
    for side in ("encoder", "decoder"):
        mixers = [m for m in model.get_submodule(side).modules() if isinstance(m, LightConvMixer)]
        for mixer, panel in zip(mixers, panels(drawn[f"kernels/{side}"]), strict=True):
            np.testing.assert_allclose(panel, mixer.kernel.detach().softmax(-1), atol=1e-6)
        assert labels(drawn[f"kernels/{side}"]) == ["head 0", "head 1"]


def test_dynamicconv_kernels_are_those_of_the_sentence() -> None:
    model, batch = build("dynamicconv")
    seen: list[Tensor] = []
    for mixer in model.encoder.modules():
        if isinstance(mixer, DynamicConvMixer):
            mixer.kernel_predictor.register_forward_hook(lambda _, __, out: seen.append(out))
    drawn = draw_model(model, batch, src_pieces=SRC, tgt_pieces=TGT)
    for raw, width, panel in zip(seen, (3, 5), panels(drawn["kernels/encoder"]), strict=True):
        expected = raw[0, :, :width].softmax(-1)  # the first head's
        np.testing.assert_allclose(panel, expected, atol=1e-6)
    assert labels(drawn["kernels/encoder"]) == SRC


def test_attention_models_have_no_kernels_and_no_hook_is_left() -> None:
    model, batch = build(AttentionConfig().name)
    assert set(draw_model(model, batch, src_pieces=SRC, tgt_pieces=TGT)) == {"source_attention"}
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_mixed_stacks_are_drawn_under_their_layers_own_numbers() -> None:
    names = ["attention", "lightconv", "dynamicconv", "depthwise"]
    mixers = {name: small(name, [3]) for name in names}
    model, batch = build(
        "lightconv", widths=[3], encoder_layers=4, encoder_mixers=names, mixers=mixers
    )
    figure = draw_model(model, batch, src_pieces=SRC, tgt_pieces=TGT)["kernels/encoder"]
    assert [axis.get_title() for axis in figure.axes] == ["layer 2", "layer 3", "layer 4"]
    found = [[label.get_text() for label in axis.get_yticklabels()] for axis in figure.axes]
    assert found == [["head 0", "head 1"], SRC, [f"head {head}" for head in range(8)]]
    assert figure.axes[2].images[0].get_clim()[0] < 0.0  # weights without softmax


def test_fonts_of_other_scripts_come_after_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = [FontEntry(name=name) for name in ("Unifont", "Comic Sans MS", "Hiragino Sans")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", installed)
    assert pictures._fonts() == [*rcParams["font.family"], "Hiragino Sans", "Unifont"]
