"""Runs that begin with another's weights: what they take over, and what may differ."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from lightconv_mt.cli import main
from lightconv_mt.compose import compose
from lightconv_mt.config import TrainRunConfig, load_run_config, to_typed
from lightconv_mt.errors import CheckpointError, ConfigError, LcmtError
from lightconv_mt.mixers.attention import AttentionConfig
from lightconv_mt.schemas import read_root
from lightconv_mt.train.checkpoint import CheckpointStore, load_weights

SIZES = (
    "model=tiny model.dim=16 model.ffn_dim=16 model.num_heads=2 model.encoder_layers=1 "
    "model.decoder_layers=1 tokenizer=bpe_500 tokenizer.vocab_size=300"
)
WORDS = ["ba", "de", "fi", "go", "hu", "ka", "le", "mi", "no", "pu", "ra", "se", "ti", "vo", "zu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def corpus(folder: Path) -> str:
    """A tiny corpus, as words of a command line."""
    lines = [" ".join(WORDS[place : place + 4]) for place in range(len(WORDS))] * 8
    (folder / "a").write_text("".join(f"{line}\n" for line in lines))
    places = " ".join(
        f"data.{kind}.{side}={folder / 'a'}"
        for kind in ("train.main", "valid")
        for side in ("src", "tgt")
    )
    return (
        f"data=text data.src_lang=xx data.tgt_lang=yy {places} data.cache_dir={folder}/cache "
        f"data.filter.drop_duplicates=false train.max_steps=2 train.validate_every_steps=2 "
        f"checkpoint.average_last=0 decode=greedy decode.max_length=4 "
        f"runtime.device=cpu runtime.threads=1"
    )


def plain(line: str) -> dict[str, Any]:
    root, registers = read_root("TrainRunConfig")
    (found,) = compose("train", shlex.split(line), root=root, registers=registers)
    return found


def newest(run_dir: Path) -> dict[str, torch.Tensor]:
    store = CheckpointStore(run_dir, load_run_config(run_dir).checkpoint)
    return load_weights(store.path(store.steps()[-1]))


@pytest.fixture(scope="module")
def first(folder: Path, corpus: str) -> Path:
    """A finished run with attention on one side."""
    mixers = "model/mixer=lightconv model/mixer@model.decoder_mixer=attention"
    run_dir = folder / "first"
    assert main("train", shlex.split(f"run_dir={run_dir} {SIZES} {mixers} {corpus}")) == 0
    return run_dir


def test_a_run_takes_over_model_tokenizer_and_weights(
    first: Path, tmp_path: Path, corpus: str
) -> None:
    line = (
        f"run_dir={tmp_path / 'next'} start_from={first} {corpus} optim.lr=1e-12 "
        f"model.dropout=0.25 tokenizer.sampling=0.1"
    )
    assert main("train", shlex.split(line)) == 0
    then, now = load_run_config(first), load_run_config(tmp_path / "next")
    assert now.model.decoder_mixer == then.model.decoder_mixer
    assert (now.model.dim, now.model.dropout, now.tokenizer.sampling) == (16, 0.25, 0.1)
    files = [(run / "tokenizer.model").read_bytes() for run in (first, tmp_path / "next")]
    assert files[0] == files[1]
    before, after = newest(first), newest(tmp_path / "next")
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-6)
    changed = line.replace("model.dropout=0.25", "model.dropout=0.3")
    assert main("train", shlex.split(changed)) == 2  # another configuration than the run's
    # The run goes on where it stood, even when the first one is gone by then.
    first.rename(first.with_name("elsewhere"))
    try:
        assert main("train", [*shlex.split(line), "train.max_steps=3"]) == 0
        assert not torch.equal(newest(tmp_path / "next")["encoder.layers.0.mixer.kernel"],
                               after["encoder.layers.0.mixer.kernel"])  # fmt: skip
        with pytest.raises(CheckpointError, match=r"start_from=.*first is no run folder"):
            plain(line.replace("next", "another"))
    finally:
        first.with_name("elsewhere").rename(first)


def test_weights_of_another_shape_are_refused(
    first: Path, tmp_path: Path, corpus: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"run_dir={tmp_path / 'next'} start_from={first} {corpus} model.ffn_dim=24"
    assert main("train", shlex.split(line)) == 4
    assert "does not fit the model: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected", "complaint"),
    [
        ("model=base", ConfigError, "model=base is given, but start_from="),
        ("tokenizer=bpe_2k", ConfigError, "brings its own tokenizer; leave it out"),
        ("tokenizer.vocab_size=999", ConfigError, "tokenizer, with vocab_size=300; leave it out"),
        ("tokenizer.src_model=a.model", ConfigError, "tokenizer, with src_model=None; leave it"),
        ("model/mixer=dynamicconv", ConfigError, "brings its own model"),
        ("model/mixer@model.encoder_mixer=lightconv", ConfigError, "brings its own model"),
        ("variant=conv", ConfigError, "brings its own model"),
        ("model.dropuot=0.2", ConfigError, "did you mean model.dropout?"),
        ("start_from=", ConfigError, "start_from is empty"),
        ("start_from=/nowhere run_dir=y", CheckpointError, "start_from=/nowhere is no run folder"),
        ("start_from=runs/x", ConfigError, "run_dir and start_from are both runs/x"),
    ],
)
def test_what_cannot_be_is_one_line(
    words: str,
    expected: type[LcmtError],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    origin = plain(f"run_dir=first experiment=demo model=tiny model/mixer=lightconv {SIZES}")
    for folder in (Path("first"), Path("runs/x")):
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(json.dumps(origin))  # which is YAML too
    run_dir = "" if "run_dir" in words else "run_dir=runs/x "
    start = "" if words.startswith("start_from") else "start_from=first "
    with pytest.raises(expected) as caught:
        to_typed(TrainRunConfig, plain(f"{run_dir}{start}{words}"))
    assert complaint in str(caught.value)


def test_the_same_mixer_may_be_named_for_the_sake_of_its_keys(tmp_path: Path) -> None:
    config = plain(f"run_dir=first {SIZES} model/mixer=attention model.attention_dropout=0.1")
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    line = (
        f"run_dir=x start_from={tmp_path} model/mixer=attention model.mixer.attention_dropout=0.4"
    )
    found = plain(line)["model"]
    assert (found["mixer"]["attention_dropout"], found["attention_dropout"]) == (0.4, 0.1)


def test_values_of_a_mixed_stack_may_differ(tmp_path: Path) -> None:
    stack = "model.encoder_layers=2 model.encoder_mixers=[lightconv,attention]"
    config = plain(f"run_dir=first {SIZES} model/mixer=lightconv {stack}")
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    line = f"run_dir=x start_from={tmp_path} model.mixers.attention.attention_dropout=0.4"
    found = to_typed(TrainRunConfig, plain(line)).model
    assert found.encoder_mixers == ["lightconv", "attention"]
    assert list(found.mixers) == ["attention"]
    assert found.mixers["attention"] == AttentionConfig(attention_dropout=0.4)
    with pytest.raises(ConfigError, match=r"model\.mixers\.dynamicconv"):
        other = line.replace("attention.attention", "dynamicconv.weight")
        to_typed(TrainRunConfig, plain(other))


@pytest.mark.parametrize("text", ["- a\n", "seed: 1\n", "model: 3\ntokenizer: {}\n", "a: !!x b\n"])
def test_a_folder_of_something_else_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.yaml"):
        plain(f"run_dir=x start_from={tmp_path}")
