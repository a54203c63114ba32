"""Outputs in the order of a model that translates back, as the commands and Python give them."""

import json
from pathlib import Path

import pytest
from toy_run import write_toy_run

from lightconv_mt import cli
from lightconv_mt.api import Translator
from lightconv_mt.config import load_run_config
from lightconv_mt.typed import to_yaml

LINES = ["ba de fi", "", "go hu", "ka le mi no pu ra", "se ti"]
SEARCH = {"beam_size": 6, "max_length": 5, "channel_weight": 5.0}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of two runs, `forth` and `back`, and text."""
    write_toy_run(tmp_path / "forth")
    back = write_toy_run(tmp_path / "back", mixer="attention")
    config = load_run_config(back)
    config.data.src_lang, config.data.tgt_lang = config.data.tgt_lang, config.data.src_lang
    (back / "config.yaml").write_text(to_yaml(config))
    (tmp_path / "in").write_text("".join(f"{line}\n" for line in LINES))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str, *words: str) -> int:
    decode = [f"decode.{key}={value}" for key, value in SEARCH.items()]
    runtime = ["runtime.device=cpu", "runtime.threads=1"]
    return cli.main(command, ["run_dir=forth", *decode, *runtime, *words])


@pytest.mark.parametrize("channel", [["back"], ["back", "forth"]])
def test_commands_and_python_give_the_same_order(folder: Path, channel: list[str]) -> None:
    word = f"channel=[{','.join(channel)}]"
    made = ("input=in", "output=out", "nbest_format=jsonl", "decode.nbest=6")
    assert run("translate", word, *made) == 0
    found = [json.loads(line) for line in (folder / "out").read_text().splitlines()]
    assert {each["score_kind"] for each in found} == {"channel"}
    translator = Translator.load("forth", channel=channel, device="cpu", threads=1)
    expected = translator.translate(LINES, nbest=6, **SEARCH)
    for line, translation in zip(found, expected, strict=True):
        assert [(each["text"], each["score"]) for each in line["nbest"]] == [*translation.nbest]
    plain = translator.translate(LINES, nbest=6, **{**SEARCH, "channel_weight": 0.0})
    assert [each.text for each in plain] != [each.text for each in expected]
    (folder / "ref").write_text("".join(f"{line}\n" for line in LINES[::-1]))
    scored = ("src=in", "ref=ref", "output=hyp", "metrics=bleu")
    assert run("eval", word, *scored) == 0
    assert (folder / "hyp").read_text().splitlines() == [each.text for each in expected]


def test_other_languages_are_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    Translator.load("forth", channel="back", device="cpu")
    assert "is expected" not in caplog.text
    Translator.load("forth", channel="forth", device="cpu")
    warning = "channel=forth was trained from xx to yy; from yy to xx is expected"
    assert warning in [record.message for record in caplog.records]


def test_a_channel_that_is_no_run_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("translate", "channel=nowhere", "input=in", "output=out") == 4
    assert "error: nowhere is no run folder" in capsys.readouterr().err
    assert not (folder / "out").exists()
