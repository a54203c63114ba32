"""A sweep: its runs, what is trained when it is called again, its table; a whole toy sweep."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import ablation
from lightconv_mt.errors import ConfigError
from sweep import runs as sweep_runs
from sweep.measure import Measurement
from sweep.runs import list_runs, train_runs
from sweep.table import Row, as_json, draw, markdown, spread

# Stands for lcmt-train: notes its call beside its folder, and ends as a file there says.
FAKE = """
import sys, time
from pathlib import Path
*words, last = sys.argv[1:]
folder = Path(last.removeprefix("run_dir="))
with (folder.parent / "calls").open("a") as file:
    file.write(folder.name + "\\n")
time.sleep(float((folder.parent / "seconds").read_text()))
sys.exit(int((folder.parent / f"{folder.name}.code").read_text()))
"""
Fake = Callable[..., list[str]]


def test_each_combination_is_a_run_and_each_choice_a_row(tmp_path: Path) -> None:
    words = ["experiment=tiny", "model/mixer=conv,lightconv", "seed=1,2", "optim.lr=1e-3"]
    runs = list_runs(tmp_path, words)
    assert [(run.row, run.folder.name) for run in runs] == [
        ("conv", "experiment=tiny,model_mixer=conv,seed=1"),
        ("conv", "experiment=tiny,model_mixer=conv,seed=2"),
        ("lightconv", "experiment=tiny,model_mixer=lightconv,seed=1"),
        ("lightconv", "experiment=tiny,model_mixer=lightconv,seed=2"),
    ]
    assert runs[3].words == (
        *("experiment=tiny", "model/mixer=lightconv", "seed=2", "optim.lr=1e-3"),
    )
    (alone,) = list_runs(tmp_path, ["experiment=demo"])
    assert (alone.row, alone.folder.name) == ("all", "experiment=demo")
    kernels = list_runs(tmp_path, ["model.mixer.encoder_kernel_sizes=[3],[3,7]"])
    assert [run.row for run in kernels] == ["[3]", "[3,7]"]
    assert list_runs(tmp_path, ["optim.lr=1"])[0].folder.name == "run"
    # One more choice leaves the others their folders.
    more = list_runs(tmp_path, ["experiment=demo", "seed=1,2"])
    assert list_runs(tmp_path, ["experiment=demo", "seed=1"])[0] in more


@pytest.mark.parametrize(
    ("word", "message"), [("run_dir=x", "a folder of its own"), ("seed", "cannot be read")]
)
def test_words_that_make_no_runs_are_refused(tmp_path: Path, word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        list_runs(tmp_path, [word])


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Trains with the program above; returns the calls made."""

    def train(*, jobs: int = 1, seconds: float = 0.0, **codes: int) -> list[str]:
        runs = list_runs(tmp_path, ["variant=a,b,c", "seed=1"])
        (tmp_path / "calls").write_text("")
        (tmp_path / "seconds").write_text(str(seconds))
        for run in runs:
            name = run.words[0].removeprefix("variant=")
            (tmp_path / f"{run.folder.name}.code").write_text(str(codes.get(name, 0)))
        monkeypatch.setattr(sweep_runs, "PROGRAM", FAKE)
        found = train_runs(runs, jobs=jobs)
        assert [found[run] for run in runs] == [codes.get(name, 0) for name in "abc"]
        return (tmp_path / "calls").read_text().split()

    return train


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_ended_for_good_is_not_trained_again(fake: Fake, jobs: int) -> None:
    every = [f"variant={name},seed=1" for name in "abc"]
    assert sorted(fake(jobs=jobs, b=5, c=4)) == every
    # Divergence is a result, a missing file is not.
    assert fake(jobs=jobs, b=5) == every[2:]
    assert fake(jobs=jobs, b=5) == []


def test_other_words_are_another_run(fake: Fake, tmp_path: Path) -> None:
    fake()
    note = tmp_path / "variant=b,seed=1" / "sweep.json"
    kept = json.loads(note.read_text())
    note.write_text(json.dumps({**kept, "words": ["variant=b", "seed=1", "optim.lr=1"]}))
    assert fake() == ["variant=b,seed=1"]


def test_a_signal_is_passed_on_and_no_run_begun_after_it(fake: Fake, tmp_path: Path) -> None:
    def stop_the_first_run() -> None:
        while not (calls.exists() and calls.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    calls = tmp_path / "calls"
    threading.Thread(target=stop_the_first_run, daemon=True).start()
    with pytest.raises(KeyboardInterrupt) as caught:
        fake(seconds=60.0)
    assert caught.value.args == (signal.SIGTERM,)
    assert calls.read_text().split() == ["variant=a,seed=1"]
    assert not (tmp_path / "variant=a,seed=1" / "sweep.json").exists()


def measurement(bleu: float, training: float = 1000.0) -> Measurement:
    return Measurement(2_470_000, bleu, "nrefs:1|x", 1000, training, [10.0, 12.0])


def test_the_table_has_means_and_sample_deviations(tmp_path: Path) -> None:
    rows = [
        Row("lightconv", [measurement(40.0), measurement(41.0), measurement(42.0)]),
        Row("one seed", [measurement(39.5)]),
        Row("no softmax", [], diverged=2, failed=1),
        Row("some", [measurement(30.0), measurement(31.0)], diverged=1),
    ]
    lines = markdown(rows, ["note"]).splitlines()
    # Deviations by hand: 1 of 40, 41, 42; of 10, 12 three times the root of 6 / 5.
    assert lines[2] == ("| lightconv | 2.47 M | 41.00 ± 1.00 | 3 | 1,000 ± 0 | 11.0 ± 1.1 |")
    assert lines[3] == "| one seed | 2.47 M | 39.50 | 1 | 1,000 | 11.0 ± 1.4 |"
    assert lines[4] == "| no softmax |  |  | 2 diverged, 1 failed |  |  |"
    assert "30.50 ± 0.71 | 2, 1 diverged |" in lines[5]
    assert lines[-1] == "note"
    kept = json.loads(as_json(rows, {"jobs": 2}))
    assert kept["settings"] == {"jobs": 2}
    assert (kept["rows"][0]["mean"]["bleu"], kept["rows"][0]["stdev"]["bleu"]) == (41.0, 1.0)
    assert kept["rows"][2]["mean"] == {}
    draw(rows, tmp_path / "a.svg")
    draw(rows, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.svg").read_text().count("<!-- lightconv -->") == 1
    assert spread([1234.5], ",.0f") == "1,234"


def test_a_whole_sweep_is_trained_measured_and_tabulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, count in (("train", 300), ("valid", 8)):
        lines = [f"alpha beta {n % 7} {n % 11}" for n in range(count)]
        for side in ("x", "y"):
            (tmp_path / f"{name}.{side}").write_text("".join(f"{line}\n" for line in lines))
    sides = (("src", "x"), ("tgt", "y"))
    call = [
        *("ablation.py", str(tmp_path / "out"), "data=text", "data.src_lang=x", "data.tgt_lang=y"),
        *(f"data.train.main.{side}={tmp_path}/train.{end}" for side, end in sides),
        *(f"data.valid.{side}={tmp_path}/valid.{end}" for side, end in sides),
        *(f"data.cache_dir={tmp_path}/cache", "model=tiny", "variant=depthwise,lightconv"),
        *("model.encoder_layers=1", "model.decoder_layers=1", "tokenizer.vocab_size=280"),
        *("batch.max_tokens=256", "batch.max_length=64", "train.max_steps=4", "seed=3"),
        *("train.log_every_steps=1", "decode=greedy", "runtime=cpu", "runtime.threads=1"),
        *("--rounds", "2", "--eval", "decode=greedy", "decode.max_length=5", "runtime=cpu"),
        *(f"src={tmp_path}/valid.x", f"ref={tmp_path}/valid.y", "runtime.threads=1"),
    ]
    monkeypatch.setattr(sys, "argv", call)
    assert ablation.main() == 0
    printed = capsys.readouterr().out
    table = (tmp_path / "out" / "table.md").read_text()
    assert printed.endswith(table)
    assert [line.split(" | ")[0] for line in table.splitlines()[2:4]] == [
        *("| depthwise", "| lightconv"),
    ]
    assert "BLEU on 8 sentences: nrefs:1|case:mixed" in table
    kept = json.loads((tmp_path / "out" / "table.json").read_text())
    for row in kept["rows"]:
        (run,) = row["measured"]
        assert run["training_tokens_per_second"] > 0
        assert len(run["decoding_sentences_per_second"]) == 2
    # depthwise has a kernel of 3 for each of 128 channels, lightconv one for each of 4 heads.
    first, second = (row["measured"][0]["parameters"] for row in kept["rows"])
    assert first - second == 2 * 3 * (128 - 4)
    # Again: nothing is trained or measured anew.
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*")}
    assert ablation.main() == 0
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*")}


def test_wrong_words_are_told_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = (
        (
            ["--eval", "decode.beam=4"],
            "there is no key decode.beam; did you mean decode.beam_size?",
        ),
        (["seed=1,2", "optim.lrr=1"], "there is no key optim.lrr; did you mean optim.lr?"),
        (["variant=conv,lihgtconv"], "there is no variant=lihgtconv; did you mean lightconv?"),
    )
    for words, message in wrong:
        call = ["ablation.py", str(tmp_path / "out"), "experiment=demo", *words]
        monkeypatch.setattr(sys, "argv", call)
        assert ablation.main() == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    (tmp_path / "out").touch()
    monkeypatch.setattr(sys, "argv", ["ablation.py", str(tmp_path / "out"), "experiment=demo"])
    assert ablation.main() == 2
    assert f"error: cannot write out={tmp_path}/out/experiment=demo" in capsys.readouterr().err
