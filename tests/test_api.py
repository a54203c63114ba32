"""Translation from Python: what it refuses; what it gives is in test_end_to_end."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from toy_run import write_toy_run

from lightconv_mt.api import Translator
from lightconv_mt.errors import CheckpointError, ConfigError, DataError


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_run(tmp_path_factory.mktemp("toy") / "run")


@pytest.mark.parametrize("number", [0, 1, 3])
def test_each_line_has_one_prefix_and_one_target(run_dir: Path, number: int) -> None:
    translator, others = Translator.load(run_dir, device="cpu"), ["ba"] * number
    with pytest.raises(DataError, match=f"there are 2 lines but {number} prefixes; give one for"):
        translator.translate(["ba", "de"], prefixes=others)
    with pytest.raises(DataError, match=f"there are 2 lines but {number} targets; give one for"):
        translator.score(["ba", "de"], others)


@pytest.mark.parametrize(
    ("lines", "others", "message"),
    [("ba", "de", "lines is a"), ("ba", ["de"], "lines is a"), (["ba"], "d", "s is a")],
)
def test_a_text_is_no_list_of_lines(
    run_dir: Path, lines: Sequence[str], others: Sequence[str], message: str
) -> None:
    translator = Translator.load(run_dir, device="cpu")
    for call in (translator.score, lambda one, two: translator.translate(one, prefixes=two)):
        with pytest.raises(DataError, match=f"{message} single text; give a list of texts"):
            call(lines, others)


def test_the_same_seed_draws_the_same_again(run_dir: Path) -> None:
    translator = Translator.load(run_dir, device="cpu", threads=1)
    options = {"sampling": True, "beam_size": 1, "seed": 7, "max_length": 6}
    lines = ["ba de fi", "ba de fi"]
    first, second = (translator.translate(lines, **options) for _ in range(2))
    assert first == second
    assert first[0] != first[1]  # each line has draws of its own


def test_int8_is_no_precision_of_scores(run_dir: Path) -> None:
    translator = Translator.load(run_dir, device="cpu", precision="int8", threads=1)
    with pytest.raises(ConfigError, match="precision is int8, .*; take fp32 or bf16"):
        translator.score(["ba de"], ["ba"])
    ordered = Translator.load(run_dir, channel=run_dir, device="cpu", precision="int8", threads=1)
    with pytest.raises(ConfigError, match="precision is int8, .*; take fp32 or bf16"):
        ordered.translate(["ba de"], channel_weight=0.2, max_length=5)


def test_precision_is_not_left_open(run_dir: Path) -> None:
    with pytest.raises(ConfigError, match="precision=auto is for training; translate with fp32"):
        Translator.load(run_dir, precision="auto")


@pytest.mark.parametrize("limit", [-1, 0, 1, "5"])
def test_a_source_has_room_for_a_token_and_its_end(run_dir: Path, limit: Any) -> None:
    with pytest.raises(ConfigError, match=f"max_source_tokens is {limit!r}; give 2 or more"):
        Translator.load(run_dir, max_source_tokens=limit)


def test_batches_have_a_size(run_dir: Path) -> None:
    translator = Translator.load(run_dir, device="cpu")
    for name, count in (("batch_size", 0), ("max_tokens", -1), ("batch_size", "9")):
        options: dict[str, Any] = {name: count}
        with pytest.raises(ConfigError, match=f"{name} is {count!r}; give a whole number of 1 or"):
            translator.translate(["ba"], **options)


def test_a_step_is_named_by_its_number(run_dir: Path) -> None:
    with pytest.raises(CheckpointError, match="has no checkpoint 5; there is average"):
        Translator.load(run_dir, device="cpu", checkpoint=5)
