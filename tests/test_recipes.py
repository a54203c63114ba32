"""The recipes against the published tables: parameter counts, kernel widths, training values."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

from lightconv_mt import config as real
from lightconv_mt.cli import ROOTS
from lightconv_mt.compose import compose
from lightconv_mt.model.transformer import Seq2SeqTransformer
from lightconv_mt.schemas import read_root
from lightconv_mt.typed import to_plain

GLU = "model.mixer.encoder_glu={0} model.mixer.decoder_glu={0}"
WITH, WITHOUT = GLU.format("true"), GLU.format("false")

# Millions of parameters of fairseq's architectures (lightconv_wmt_en_de_big and so on), counted by
# building them at fairseq 3d262bb2, to as many digits as were noted. conv_bias, which no model
# uses, is not counted. The vocabularies are those of the published models; the Chinese-English
# ones are guesses. Its last figure was noted as 240.9, which cannot be beside the other three: both
# DynamicConvs have 4.37 more than their LightConv.
FAIRSEQ = [
    ("wmt16_{}_big", 32768, 32768, ("208.87", "195.22", "213.24", "199.59")),
    ("wmt14_en_fr_{}_big", 44512, 44512, ("220.89", "207.25", "225.26", "211.62")),
    ("wmt17_zh_en_{}_big", 41264, 31792, ("250.1", "236.5", "254.5", "240.8")),
    ("wmt16_{}_base", 32768, 32768, ("60.66", "57.24", "61.75", "58.33")),
    ("iwslt14_{}", 8848, 6632, ("41.55", "38.14", "42.10", "38.69")),
]

# The paper's ablation table, in whole millions as reported, and what these experiments have. Two
# rows differ in the last digit, and no vocabulary explains both and the 200M of DynamicConv: the
# paper seems to have cut digits off where it did not round.
ABLATION = [
    ("attention", "210", "209.91"),
    ("attention_window", "210", "209.91"),
    ("conv", "208", "208.84"),  # cut off: rounded it would be 209
    ("depthwise", "195", "195.26"),
    ("depthwise_wide", "195", "195.49"),
    ("depthwise_dropout", "195", "195.49"),
    ("depthwise_shared", "195", "195.22"),
    ("lightconv", "195", "195.22"),
    ("dynamicconv", "200", "199.59"),
    ("dynamicconv_no_softmax", "200", "199.59"),
    ("average_attention_decoder", "260", "260.26"),
    ("average_attention", "310", "310.61"),  # cut off: rounded it would be 311
]


# Reported for CNN / Daily Mail, in whole millions, which are cut off too: 90.22, 86.54, 87.63.
SUMMARIES = [("attention", 90), ("lightconv", 86), ("dynamicconv", 87)]


@cache
def composed(line: str) -> real.TrainRunConfig:
    root, registers = read_root(ROOTS["train"])
    (plain,) = compose("train", line.split(), root=root, registers=registers)
    return real.to_typed(real.TrainRunConfig, plain)


def millions(line: str, src_vocab_size: int, tgt_vocab_size: int) -> float:
    with torch.device("meta"):
        model = Seq2SeqTransformer(
            composed(line).model,
            src_vocab_size=src_vocab_size,
            tgt_vocab_size=tgt_vocab_size,
            src_pad_id=1,
            tgt_pad_id=1,
        )
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def shown(value: float, like: str) -> str:
    """A number with as many decimals as another one has."""
    return f"{value:.{len(like.partition('.')[2])}f}"


def fairseq_rows() -> Iterator[tuple[str, int, int, str]]:
    for name, src, tgt, counts in FAIRSEQ:
        for column, expected in enumerate(counts):
            mixer, glu = ("lightconv", "dynamicconv")[column // 2], (WITH, WITHOUT)[column % 2]
            yield f"experiment={name.format(mixer)} {glu}", src, tgt, expected


@pytest.mark.parametrize(("line", "src", "tgt", "expected"), [*fairseq_rows()])
def test_parameters_of_the_published_architectures(
    line: str, src: int, tgt: int, expected: str
) -> None:
    assert shown(millions(line, src, tgt), expected) == expected


@pytest.mark.parametrize(("name", "reported", "expected"), ABLATION)
def test_parameters_of_the_ablation_table(name: str, reported: str, expected: str) -> None:
    found = millions(f"experiment=ablation/{name}", 32768, 32768)
    assert shown(found, expected) == expected
    assert int(reported) in (int(found), round(found))


@pytest.mark.parametrize(("name", "reported"), SUMMARIES)
def test_parameters_of_the_summarisation_models(name: str, reported: int) -> None:
    config = composed(f"experiment=cnn_dm_{name}")
    size = config.tokenizer.vocab_size
    assert int(millions(f"experiment=cnn_dm_{name}", size, size)) == reported
    assert (size, config.batch.truncate_source) == (30000, 400)
    assert config.decode.no_repeat_ngram_size == 3
    assert config.data.filter.max_words > 5000  # no article is dropped for its length


def test_the_chinese_baseline_is_the_ablations_beside_its_tables() -> None:
    # Reported: 292M; the vocabularies are not known.
    tables = 1024 * (41264 + 31792) / 1e6
    found = millions("experiment=wmt17_zh_en_attention_big", 41264, 31792) - tables
    big = millions("experiment=ablation/attention", 32768, 32768) - 1024 * 32768 / 1e6
    assert found == pytest.approx(big)


def test_kernel_widths_are_the_papers() -> None:
    for mixer in ("lightconv", "dynamicconv"):
        for name in ("iwslt14_{}", "wmt16_{}_big", "wmt16_{}_base", "ablation/{}"):
            chosen = to_plain(composed(f"experiment={name.format(mixer)}").model.mixer)
            assert chosen["encoder_kernel_sizes"] == [3, 7, 15, 31, 31, 31, 31]
            assert chosen["decoder_kernel_sizes"] == [3, 7, 15, 31, 31, 31]


# Dropout, attention, weight and input dropout; lr, warm-up, period, floor, updates; target tokens
# a step; tying, smoothing, weight decay; beam, length penalty (fairseq's README of the paper).
TRAINING: dict[str, tuple[Any, ...]] = {
    "iwslt14_{}": (
        *(0.3, 0.1, 0.1, 0.0, 5e-4, 4000, None, None, 50000, 4000, "none", 0.1, 1e-4, 4, 1.0),
    ),
    "wmt16_{}_big": (
        *(0.3, 0.1, 0.1, 0.1, 1e-3, 10000, 20000, 1e-7, 30000, 458752, "all", 0.1, 0.0, 5, 0.5),
    ),
    "wmt14_en_fr_{}_big": (
        *(0.1, 0.1, 0.1, 0.1, 1e-3, 10000, 70000, 1e-7, 80000, 458752, "all", 0.1, 0.0, 5, 0.9),
    ),
    "wmt17_zh_en_{}_big": (
        *(0.2, 0.2, 0.2, 0.1, 1e-3, 10000, 20000, 1e-7, 30000, 458752, "decoder", 0.1, 0.0, 5, 0.5),
    ),
    "wmt16_{}_base": (
        *(0.1, 0.0, 0.0, 0.1, 1e-3, 10000, 20000, 1e-7, 30000, 458752, "all", 0.1, 0.0, 5, 0.5),
    ),
}


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize("mixer", ["lightconv", "dynamicconv"])
def test_training_values_are_the_published_ones(name: str, mixer: str) -> None:
    config = composed(f"experiment={name.format(mixer)}")
    model, schedule, decode = config.model, to_plain(config.schedule), config.decode
    chosen = to_plain(model.mixer)
    found = (
        *(model.dropout, model.attention_dropout),
        *(chosen["weight_dropout"], chosen["input_dropout"]),
        *(config.optim.lr, schedule["warmup_steps"]),
        *(schedule.get("period_steps"), schedule.get("min_lr"), config.train.max_steps),
        config.batch.max_tokens * config.train.accumulate,
        *(model.tying.name, config.train.label_smoothing, config.optim.weight_decay),
        *(decode.beam_size, decode.length_penalty),
    )
    assert found == TRAINING[name]
    assert (config.optim.beta1, config.optim.beta2, config.optim.eps) == (0.9, 0.98, 1e-8)
    assert (schedule["warmup_init_lr"], config.optim.clip_norm) == (1e-7, 0.0)


@pytest.mark.parametrize(
    ("rows", "varying"),
    [
        (["iwslt14_attention", "iwslt14_lightconv", "iwslt14_dynamicconv"], {"model"}),
        ([f"ablation/{name}" for name, _, _ in ABLATION], {"model"}),
    ],
)
def test_rows_of_a_table_are_trained_alike(rows: list[str], varying: set[str]) -> None:
    first, *others = [to_plain(composed(f"experiment={name}")) for name in rows]
    for other in others:
        differing = {key for key in first if first[key] != other[key]}
        assert differing <= varying | {"run_dir"}


def test_the_ablation_is_scored_on_its_validation_set() -> None:
    data = composed("experiment=ablation/lightconv").data
    assert data.test == data.valid


def test_each_experiment_has_a_folder_of_its_own() -> None:
    rows = [f"ablation/{name}" for name, _, _ in ABLATION]
    rows += [f"multi30k_tiny model/mixer={name}" for name in ("conv", "attention")]
    folders = [composed(f"experiment={row}").run_dir for row in rows]
    assert len({*folders}) == len(rows)
    assert folders[-1] == "runs/multi30k_tiny_attention"
