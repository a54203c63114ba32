"""fairseq's options become our configuration, or are refused by name."""

from typing import Any

import pytest

from lightconv_mt.errors import CheckpointError
from lightconv_mt.interop.fairseq_architecture import (
    _REFUSED,
    LIGHTCONV_ARCHS,
    TRANSFORMER_ARCHS,
    check_kind,
    read_architecture,
)
from lightconv_mt.mixers.attention import AttentionConfig
from lightconv_mt.mixers.dynamicconv import DynamicConvConfig
from lightconv_mt.mixers.lightconv import LightConvConfig
from lightconv_mt.model.transformer import Tying
from tests.interop.conftest import KINDS


def test_a_published_models_options_are_ours(fields: dict[str, Any]) -> None:
    config = read_architecture({**fields, "weight_dropout": 0.2, "encoder_conv_dim": 6})
    assert isinstance(config.mixer, LightConvConfig)
    assert config.mixer.encoder_kernel_sizes == [3, 5]
    assert config.mixer.decoder_kernel_sizes == [3]
    assert (config.mixer.encoder_glu, config.mixer.decoder_glu) == (True, False)
    assert (config.mixer.encoder_conv_dim, config.mixer.decoder_conv_dim) == (6, None)
    assert config.mixer.weight_dropout == 0.2
    assert config.decoder_mixer is config.decoder_dim is config.decoder_num_heads is None
    assert (config.dim, config.ffn_dim, config.num_heads) == (12, 20, 3)
    assert (config.pre_norm, config.tying) == (False, Tying.all)


def test_each_side_may_have_a_convolution_of_its_own() -> None:
    config = read_architecture(KINDS["mixed"])
    assert isinstance(config.mixer, DynamicConvConfig)
    assert isinstance(config.decoder_mixer, LightConvConfig)
    assert isinstance(read_architecture(KINDS["transformer"]).mixer, AttentionConfig)


def test_what_a_version_did_not_have_yet_is_as_it_was_then(fields: dict[str, Any]) -> None:
    for key in ("weight_dropout", "input_dropout", "relu_dropout", "attention_dropout"):
        del fields[key]
    config = read_architecture({**fields, "attention_dropout": 0.3})
    assert isinstance(config.mixer, LightConvConfig)
    assert (config.mixer.weight_dropout, config.mixer.input_dropout) == (0.3, 0.1)
    assert read_architecture(fields).attention_dropout == 0.0
    transformer = {**KINDS["transformer"], "activation_dropout": 0.0, "relu_dropout": 0.2}
    assert read_architecture(transformer).relu_dropout == 0.2


@pytest.mark.parametrize("option", _REFUSED)
def test_options_that_we_do_not_have_are_refused(option: str, fields: dict[str, Any]) -> None:
    for value in (True, "10000,20000", 0.1, {"x": 1}):
        with pytest.raises(CheckpointError, match=f"with {option}, which is not supported here"):
            read_architecture({**fields, option: value})
    for value in (False, None, 0, ""):
        read_architecture({**fields, option: value})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"activation_fn": "gelu"}, "activation_fn='gelu'; only relu"),
        ({"encoder_normalize_before": True}, "but not decoder_normalize_before"),
        ({"decoder_input_dim": 8}, "decoder_input_dim=8 and decoder_embed_dim=12"),
        ({"decoder_output_dim": None}, "decoder_output_dim=None"),
        ({"encoder_layers": 0}, "encoder_layers=0, which is no size"),
        ({"encoder_layers": True}, "encoder_layers=True, which is no size"),
        ({"encoder_embed_dim": "12"}, "encoder_embed_dim='12', which is no size"),
        ({"encoder_embed_dim": 1 << 40}, "which is no size"),
        ({"encoder_attention_heads": 5}, "encoder_embed_dim=12, which its 5 encoder_attention"),
        ({"encoder_conv_dim": 7}, "encoder_conv_dim=7, which its 3 encoder_attention_heads"),
        ({"encoder_conv_type": "deep"}, "encoder_conv_type='deep', neither"),
        ({"encoder_conv_type": ["dynamic"]}, "neither lightweight nor dynamic"),
        ({"encoder_kernel_size_list": None}, "encoder_kernel_size_list=None, no list"),
        ({"encoder_kernel_size_list": []}, "no list of widths"),
        ({"encoder_kernel_size_list": "[3,5]"}, "no list of widths"),
        ({"encoder_kernel_size_list": [3, 5, 7]}, "has 3 widths in encoder_kernel_size_list, but"),
        ({"encoder_kernel_size_list": [3, 4]}, "the even width 4 in encoder_kernel_size_list"),
        ({"decoder_kernel_size_list": [3, 0]}, "has 0 in decoder_kernel_size_list, no width"),
        ({"decoder_kernel_size_list": [3, "5"]}, "has '5' in decoder_kernel_size_list, no width"),
        ({"encoder_glu": "True"}, "encoder_glu='True', neither true nor false"),
        ({"weight_softmax": None}, "weight_softmax=None, neither true nor false"),
        ({"dropout": 1.5}, "dropout=1.5, no probability"),
        ({"dropout": "0.1"}, "dropout='0.1', no probability"),
        ({"dropout": float("nan")}, "dropout=nan, no probability"),
        ({"dropout": None}, "dropout=None, no probability"),
        ({"decoder_embed_dim": 9}, "share_all_embeddings, but encoder_embed_dim and"),
    ],
)
def test_wrong_options_are_named(
    changes: dict[str, Any], complaint: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_architecture({**fields, **changes})
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    "missing",
    [
        *("encoder_embed_dim", "decoder_layers", "encoder_glu", "decoder_kernel_size_list"),
        *("weight_softmax", "share_all_embeddings", "encoder_normalize_before", "dropout"),
    ],
)
def test_missing_options_are_named(missing: str, fields: dict[str, Any]) -> None:
    del fields[missing]
    with pytest.raises(CheckpointError, match=missing):
        read_architecture(fields)


def test_absurd_values_are_not_printed_in_full(fields: dict[str, Any]) -> None:
    heavy: Any = ["x" * 100] * 100
    for _ in range(60):  # would print as 2 ** 60 lists
        heavy = [heavy, heavy]
    with pytest.raises(CheckpointError) as caught:
        read_architecture({**fields, "encoder_layers": heavy})
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("kind", KINDS)
def test_models_for_translation_are_accepted(kind: str) -> None:
    fields = dict(KINDS[kind])
    for arch in TRANSFORMER_ARCHS if kind == "transformer" else LIGHTCONV_ARCHS:
        check_kind({**fields, "arch": arch})
    del fields["task"]
    check_kind(fields)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"arch": "fconv"}, "of arch 'fconv'"),
        ({"arch": "lightconv_lm"}, "of arch 'lightconv_lm'"),
        ({"arch": None}, "of arch None"),
        ({"arch": ["lightconv"]}, "of arch ['lightconv']"),
        ({"arch": "transformer"}, "arch is 'transformer', but encoder_conv_type is 'lightweight'"),
        ({"task": "multilingual_translation"}, "for the task 'multilingual_translation'"),
        ({"task": 3}, "for the task 3"),
    ],
)
def test_other_models_are_refused(
    changes: dict[str, Any], complaint: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError) as caught:
        check_kind({**fields, **changes})
    assert complaint in str(caught.value)
