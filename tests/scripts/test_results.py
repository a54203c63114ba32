"""The table of results: two seeds of a toy run, held against what lcmt-eval says of them."""

import json
import re
import shutil
import sys
from pathlib import Path
from statistics import mean, stdev

import pytest

import average_checkpoints
import results
from lightconv_mt.cli import evaluate, train
from lightconv_mt.errors import DataError


def run_cli(monkeypatch: pytest.MonkeyPatch, command: str, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", [command, *words])
    return {"lcmt-train": train, "lcmt-eval": evaluate}[command]()


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two seeds of one run, and one of other words, which has no average."""
    for name, count in (("train", 300), ("valid", 8), ("test", 12)):
        lines = [f"Alpha beta {n % 7} gamma {n % 11}" for n in range(count)]
        for side in ("x", "y"):
            (tmp_path / f"{name}.{side}").write_text("".join(f"{line}\n" for line in lines))
    sets = (("train.main", "train"), ("valid", "valid"), ("test", "test"))
    words = [
        *("data=text", "data.src_lang=x", "data.tgt_lang=y", f"data.cache_dir={tmp_path}/cache"),
        "data.test.format=text",
        *(
            f"data.{key}.{side}={tmp_path}/{name}.{end}"
            for key, name in sets
            for side, end in (("src", "x"), ("tgt", "y"))
        ),
        *("model=tiny", "model/mixer=lightconv", "model.encoder_layers=1", "model.dropout=0.0"),
        *("model.decoder_layers=1", "tokenizer.vocab_size=284", "batch.max_tokens=256"),
        *("batch.max_length=64", "train.max_steps=40", "train.log_every_steps=12"),
        *("train.validate_every_steps=20", "checkpoint.save_every_steps=10", "optim.lr=5e-3"),
        *("schedule=cosine", "schedule.warmup_steps=10", "schedule.period_steps=30"),
        *("decode=greedy", "runtime=cpu", "runtime.threads=1"),
    ]
    folders = []
    other = ["seed=1", "optim.lr=1e-4", "checkpoint.average_last=0"]
    for name, own in (("a", ["seed=1"]), ("b", ["seed=2"]), ("c", other)):
        folder = str(tmp_path / name)
        assert run_cli(monkeypatch, "lcmt-train", *words, *own, f"run_dir={folder}") == 0
        folders.append(folder)
    return folders


def test_rows_hold_what_the_better_checkpoint_scores(
    runs: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    search = ("decode.beam_size=2", "runtime=cpu", "runtime.threads=1")
    words = ["results.py", *runs, "--json", str(tmp_path / "all.json"), "--eval", *search]
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", words)
    assert results.main() == 0
    table = capsys.readouterr().out
    both, alone = (line.strip("| ").split(" | ") for line in table.splitlines()[2:4])
    assert (both[0], both[1], alone[0], alone[1]) == ("`a`", "1, 2", "`c`", "1")
    assert both[3] == "40" and "BLEU: nrefs:1|case:mixed" in table
    kept = json.loads((tmp_path / "all.json").read_text())
    assert [[Path(each["run"]).name for each in row] for row in kept] == [["a", "b"], ["c"]]
    two = ("best", "average")
    for each, compared in zip([*kept[0], *kept[1]], [two, two, ("best",)], strict=True):
        assert each["minutes"] > 0
        said = {}
        for checkpoint in compared:
            valid = [f"src={tmp_path}/valid.x", f"ref={tmp_path}/valid.y", "metrics=bleu"]
            said[checkpoint] = scores(
                each["run"], checkpoint, [*search, *valid], monkeypatch, capsys
            )
        assert each["validation"] == pytest.approx(
            {key: at for key, (at,) in said.items()}, abs=0.01
        )
        chosen = each["checkpoint"]
        assert said[chosen][0] == max(at for (at,) in said.values())
        cased, chrf, ter = scores(each["run"], chosen, search, monkeypatch, capsys)
        lower = [*search, "metrics=bleu", "lowercase=true"]
        (caseless,) = scores(each["run"], chosen, lower, monkeypatch, capsys)
        assert each["test"] == pytest.approx([cased, caseless, chrf, ter], abs=0.01)
    first, second = (each["test"][0] for each in kept[0])
    assert both[7] == f"{mean([first, second]):.2f} ± {stdev([first, second]):.2f}"
    assert max(first, second) > 0, "something was learnt, so that figures can differ"
    monkeypatch.setattr(sys, "argv", [*words[:4], "--json", f"{tmp_path}/no/a.json", *words[6:]])
    assert results.main() == 3
    told = capsys.readouterr()
    assert table == told.out, "the table is not lost"
    assert f"error: cannot write {tmp_path}/no/a.json" in told.err and told.err.count("\n") < 20
    average_checkpoints.average(Path(runs[2]), 2, None)
    assert {*results.evaluate(Path(runs[2]), search).validation} == {"best", "average"}
    shutil.rmtree(Path(runs[0]) / "tensorboard")
    with pytest.raises(DataError, match="tensorboard has no train/tokens_per_second"):
        results.evaluate(Path(runs[0]), search)


def scores(
    run: str,
    checkpoint: str,
    words: list[str] | tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> list[float]:
    """What lcmt-eval prints, to its two decimals."""
    capsys.readouterr()
    assert (
        run_cli(monkeypatch, "lcmt-eval", f"run_dir={run}", f"checkpoint={checkpoint}", *words) == 0
    )
    return [float(value) for value in re.findall(r" = (\d+\.\d+)", capsys.readouterr().out)]


def test_what_is_no_run_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["results.py", str(tmp_path / "none")])
    assert results.main() != 0
    told = capsys.readouterr().err
    assert told.startswith("error: ") and str(tmp_path / "none") in told and told.count("\n") == 1


@pytest.mark.parametrize("word", ["test_set=wmt13", "src=a", "checkpoint=last", "metrics=ter"])
def test_words_that_would_change_nothing_are_refused(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["results.py", "none", "--eval", "decode=greedy", word])
    assert results.main() == 2
    assert f"error: --eval {word}: " in capsys.readouterr().err


def test_a_run_is_not_counted_twice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["results.py", "a", "b", "./b"])
    assert results.main() == 2
    assert capsys.readouterr().err == "error: b is given twice; give each run once\n"
