"""The whole model: sizes, tying, padding, step-by-step decoding."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightconv_mt.errors import ConfigError
from lightconv_mt.mixers import MIXERS
from lightconv_mt.mixers.attention import AttentionConfig
from lightconv_mt.mixers.conv import ConvConfig
from lightconv_mt.mixers.conv_block import ConvBlockConfig
from lightconv_mt.mixers.dynamicconv import DynamicConvConfig, DynamicConvMixer
from lightconv_mt.mixers.lightconv import LightConvConfig
from lightconv_mt.model.transformer import ModelConfig, Seq2SeqTransformer, Tying

PAD = 1


def build(
    mixer: str = "dynamicconv", *, src_vocab: int = 20, tgt_vocab: int = 20, **values: Any
) -> Seq2SeqTransformer:
    mixer_config = MIXERS[mixer]()
    if isinstance(mixer_config, ConvBlockConfig):
        mixer_config.encoder_kernel_sizes = [3, 4]
        mixer_config.decoder_kernel_sizes = [5]
    values = {
        "dim": 8,
        "ffn_dim": 12,
        "num_heads": 2,
        "encoder_layers": 2,
        "decoder_layers": 3,
        **values,
    }
    model = Seq2SeqTransformer(
        ModelConfig(mixer=mixer_config, **values),
        src_vocab_size=src_vocab,
        tgt_vocab_size=tgt_vocab,
        src_pad_id=PAD,
        tgt_pad_id=PAD,
    )
    return model.double().eval()


def sentences(lengths: list[int], width: int | None = None) -> tuple[Tensor, Tensor]:
    tokens = torch.full((len(lengths), width or max(lengths)), PAD)
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.randint(4, 20, (length,))
    return tokens, tokens != PAD


@pytest.mark.parametrize("mixer", sorted(MIXERS))
@pytest.mark.parametrize("pre_norm", [False, True])
def test_padding_and_neighbours_change_nothing(mixer: str, pre_norm: bool) -> None:
    model = build(mixer, pre_norm=pre_norm)
    src, src_mask = sentences([9, 4, 1])
    tgt, tgt_mask = sentences([3, 7, 5])
    together = model.project(model(src, src_mask, tgt, tgt_mask))
    for row in range(3):
        s, t = int(src_mask[row].sum()), int(tgt_mask[row].sum())
        alone = model.project(
            model(
                src[row : row + 1, :s],
                src_mask[row : row + 1, :s],
                tgt[row : row + 1, :t],
                tgt_mask[row : row + 1, :t],
            )
        )
        torch.testing.assert_close(together[row, :t], alone[0], rtol=0, atol=1e-12)


def test_left_padding_gives_the_same_numbers() -> None:
    model = build()
    src, src_mask = sentences([6])
    tgt, tgt_mask = sentences([5])
    left = torch.cat([torch.full((1, 3), PAD), src], dim=1)
    torch.testing.assert_close(
        model(left, left != PAD, tgt, tgt_mask),
        model(src, src_mask, tgt, tgt_mask),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("mixer", sorted(MIXERS))
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"decoder_dim": 12, "decoder_ffn_dim": 20, "decoder_num_heads": 3, "tying": Tying.decoder},
    ],
)
@torch.no_grad()
def test_steps_equal_forward_for_every_beam_row(mixer: str, sizes: dict[str, Any]) -> None:
    model = build(mixer, **sizes)
    src, src_mask = sentences([9, 4])
    tgt, _ = sentences([8, 8, 8, 8, 8, 8])
    beam = 3
    state = model.start(model.encode(src, src_mask), src_mask, beam)
    logits = []
    for start, end in ((0, 1), (1, 2), (2, 5), (5, 8)):
        out, state = model.decode_step(tgt[:, start:end], state)
        logits.append(out)
    whole = model.project(
        model(
            src.repeat_interleave(beam, 0),
            src_mask.repeat_interleave(beam, 0),
            tgt,
            torch.ones_like(tgt).bool(),
        )
    )
    torch.testing.assert_close(torch.cat(logits, dim=1), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mixer", sorted(MIXERS))
@torch.no_grad()
def test_rows_are_reordered_and_sentences_dropped(mixer: str) -> None:
    model = build(mixer)
    src, src_mask = sentences([9, 4, 6])
    tgt, _ = sentences([6] * 6)
    state = model.start(model.encode(src, src_mask), src_mask, 2)
    _, state = model.decode_step(tgt[:, :4], state)
    rows, kept = torch.tensor([1, 1, 5, 4]), torch.tensor([0, 2])
    state = state.reorder(rows).keep(kept)
    out, _ = model.decode_step(tgt[rows, 4:], state)
    of_source = kept.repeat_interleave(2)
    whole = model(
        src[of_source], src_mask[of_source], tgt[rows], torch.ones(4, 6, dtype=torch.bool)
    )
    torch.testing.assert_close(out, model.project(whole)[:, 4:], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("tying", "tables"), [(Tying.none, 3), (Tying.decoder, 2), (Tying.all, 1)])
def test_tying_decides_the_number_of_tables(tying: Tying, tables: int) -> None:
    model = build(tying=tying)
    assert sum(parameter.shape == (20, 8) for parameter in model.parameters()) == tables
    src, src_mask = sentences([4])
    model.project(model(src, src_mask, src, src_mask)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_two_vocabularies_cannot_be_tied() -> None:
    with pytest.raises(
        ConfigError,
        match="the source has 20 pieces and the target 22; set tokenizer.vocabulary=joint",
    ):
        build(tgt_vocab=22)
    assert build(tgt_vocab=22, tying=Tying.decoder).output_weight.shape == (22, 8)


def test_each_side_may_have_its_own_mixer() -> None:
    model = build(encoder_mixer=AttentionConfig())
    kinds = [type(layer.mixer).__name__ for layer in [*model.encoder.layers, *model.decoder.layers]]
    assert kinds == ["AttentionMixer"] * 2 + ["DynamicConvMixer"] * 3


def test_a_stack_may_mix_mixers() -> None:
    mixers = {
        "attention": AttentionConfig(encoder_windows=[3, 5, 7, 11], decoder_windows=[4]),
        "conv": ConvConfig(encoder_kernel_sizes=[9]),
        "near": AttentionConfig(encoder_windows=[1]),
    }
    model = build(
        encoder_layers=4,
        encoder_mixers=["conv", "near", "lightconv", "attention"],
        encoder_mixer=LightConvConfig(encoder_kernel_sizes=[3, 5, 7, 9]),
        decoder_mixers=["attention", "dynamicconv", "conv"],
        mixers=mixers,
    )
    found = [layer.mixer for layer in [*model.encoder.layers, *model.decoder.layers]]
    assert [type(mixer).__name__ for mixer in found] == [
        *("ConvMixer", "AttentionMixer", "LightConvMixer", "AttentionMixer"),
        *("AttentionMixer", "DynamicConvMixer", "ConvMixer"),
    ]
    # Widths are those of the layer in the whole stack.
    assert (found[1].window, found[2].kernel_size, found[3].window) == (1, 7, 11)
    src, src_mask = sentences([9, 4])
    tgt, tgt_mask = sentences([8, 8])
    state = model.start(model.encode(src, src_mask), src_mask, 1)
    with torch.no_grad():
        for time in range(8):
            logits, state = model.decode_step(tgt[:, time, None], state)
        whole = model.project(model(src, src_mask, tgt, tgt_mask))
    torch.testing.assert_close(logits[:, 0], whole[:, -1], rtol=0, atol=1e-12)
    single = build(
        encoder_mixers=["dynamicconv"], encoder_mixer=DynamicConvConfig(encoder_kernel_sizes=[3])
    )
    assert all(isinstance(layer.mixer, DynamicConvMixer) for layer in single.encoder.layers)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encoder_mixers": ["conv"] * 3}, "model.encoder_mixers has 3 names but .*layers is 2"),
        ({"decoder_mixers": []}, "model.decoder_mixers has 0 names"),
        ({"encoder_mixers": ["covn"]}, "model.encoder_mixers has 'covn'; did you mean conv"),
        (
            {"mixers": {"conv": ConvConfig(encoder_kernel_sizes=[3, 5, 7])}},
            r"model\.mixers\.conv\.encoder_kernel_sizes has 3 widths",
        ),
        (
            {"encoder_mixer": ConvConfig(encoder_kernel_sizes=[3, 5, 7]), "encoder_mixers": None},
            r"model\.encoder_mixer\.encoder_kernel_sizes has 3 widths",
        ),
    ],
)
def test_mixed_stacks_that_do_not_fit_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**{"encoder_mixers": ["conv"], "mixers": {"conv": ConvConfig()}, **values})


# Rows of the paper's ablation: mixer, values, the decoder's if another, millions of parameters, and
# the millions that it prints. There are 6 + 6 layers with attention or its average in the encoder,
# else 7 + 6, and no GLU.
NO_GLU = {"encoder_glu": False, "decoder_glu": False}
NARROW = {"encoder_kernel_sizes": [3], "decoder_kernel_sizes": [3], **NO_GLU}
ABLATION = [
    ("attention", {}, None, 209.91, 210),
    ("attention", {"encoder_windows": [31], "decoder_windows": [31]}, None, 209.91, 210),
    ("conv", {}, None, 208.84, 208),
    ("depthwise", NARROW, None, 195.26, 195),
    ("depthwise", NO_GLU, None, 195.49, 195),
    ("depthwise", {"num_heads": 16, **NO_GLU}, None, 195.22, 195),
    ("lightconv", NO_GLU, None, 195.22, 195),
    ("dynamicconv", NO_GLU, None, 199.59, 200),
    ("attention", {}, "average_attention", 260.26, 260),
    ("average_attention", {}, None, 310.61, 310),
]


@pytest.mark.parametrize(("mixer", "values", "decoder", "counted", "printed"), ABLATION)
def test_big_models_have_the_parameters_of_the_ablation(
    mixer: str, values: dict[str, Any], decoder: str | None, counted: float, printed: int
) -> None:
    """Wu et al. (2019), table 3: two rows are there only if cut off instead of rounded."""
    with torch.device("meta"):
        model = Seq2SeqTransformer(
            ModelConfig(
                mixer=MIXERS[mixer](**values),
                decoder_mixer=MIXERS[decoder]() if decoder else None,
                encoder_layers=6 if "attention" in mixer else 7,
                dim=1024,
                ffn_dim=4096,
                num_heads=16,
            ),
            src_vocab_size=32768,
            tgt_vocab_size=32768,
            src_pad_id=PAD,
            tgt_pad_id=PAD,
        )
    total = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert total == pytest.approx(counted, abs=0.005)
    assert printed in (round(total), int(total))


@pytest.mark.parametrize(
    ("mixer", "glu", "expected"),
    [
        (LightConvConfig, True, 208.87),
        (LightConvConfig, False, 195.22),
        (DynamicConvConfig, True, 213.24),
        (DynamicConvConfig, False, 199.59),
    ],
)
def test_big_models_have_the_published_number_of_parameters(
    mixer: type[LightConvConfig] | type[DynamicConvConfig], glu: bool, expected: float
) -> None:
    """wmt_en_de_big with 32,768 pieces, all embeddings tied, in millions."""
    with torch.device("meta"):
        model = Seq2SeqTransformer(
            ModelConfig(
                mixer=mixer(encoder_glu=glu, decoder_glu=glu), dim=1024, ffn_dim=4096, num_heads=16
            ),
            src_vocab_size=32768,
            tgt_vocab_size=32768,
            src_pad_id=PAD,
            tgt_pad_id=PAD,
        )
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(
        expected, abs=0.005
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dim": 0}, "model.dim is 0"),
        ({"num_heads": 3}, "8 channels cannot be shared by 3 heads"),
        ({"decoder_dim": 12}, "tying=all needs one size"),
        ({"dropout": 1.0}, "model.dropout is 1.0"),
        ({"encoder_layers": 7}, "encoder_kernel_sizes has 2 widths but model.encoder_layers is 7"),
    ],
)
def test_impossible_sizes_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**values)
