"""lcmt-prepare as a user calls it: a local data set in, a configuration to train with out."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lightconv_mt import cli
from lightconv_mt.compose import compose
from lightconv_mt.config import TrainRunConfig, to_typed
from lightconv_mt.data.corpus import read_corpus, read_source
from lightconv_mt.data.prepare import PARTS
from lightconv_mt.run_folder import lock_run
from lightconv_mt.schemas import read_root

PROGRAM = "import sys; from lightconv_mt.cli import main; sys.exit(main('prepare', sys.argv[1:]))"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local copy of a data set as the hub has it: three splits of translations."""
    from datasets import Dataset, DatasetDict, Features, Translation

    features = Features({"translation": Translation(["de", "en"])})
    splits = {
        name: Dataset.from_dict(
            {
                "translation": [
                    {"de": f"{name} Satz {n % 1900}", "en": f"{name} line {n % 1900}"}
                    for n in range(count)
                ]
            },
            features=features,
        )
        for name, count in (("train", 2000), ("validation", 5), ("test", 6))
    }
    folder = tmp_path_factory.mktemp("copy") / "wmt16"
    DatasetDict(splits).save_to_disk(folder)
    return folder


def words(copy: Path, out: Path, *more: str) -> list[str]:
    paths = [f"data.{key}.path={copy}" for key in ("train.wmt16", "valid", "test")]
    return ["data=wmt16_en_de", f"out={out}", *paths, *more]


def trained_with(folder: Path, line: str) -> Any:
    root, registers = read_root(cli.ROOTS["train"])
    arguments = ["--config-dir", str(folder), *line.split()]
    (plain,) = compose("train", arguments, root=root, registers=registers)
    return to_typed(TrainRunConfig, plain)


def test_the_recipe_trains_on_what_was_prepared(
    copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "prepared, with = signs"
    assert cli.main("prepare", words(copy, out)) == 0
    config = trained_with(out, "experiment=wmt16_dynamicconv_big data=prepared")
    assert config.train.accumulate == 128  # the experiment's other values stand
    corpus = read_corpus(config.data)
    pairs = [pair for _, pair in corpus.pairs()]
    assert (len(pairs), pairs[0]) == (1900, ("train line 0", "train Satz 0"))
    assert not corpus.report.dropped
    for source, count in ((config.data.valid, 5), (config.data.test, 6)):
        assert len([*read_source(source, config.data)]) == count
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert cli.main("prepare", words(copy, out)) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before | {
        out / "lock": (out / "lock").stat().st_mtime_ns
    }


def test_other_values_in_the_same_folder_are_refused(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main("prepare", words(copy, tmp_path)) == 0
    assert cli.main("prepare", words(copy, tmp_path, "part_pairs=7")) == 0  # decides no content
    assert cli.main("prepare", words(copy, tmp_path, "data.filter.max_words=2")) == 2
    message = capsys.readouterr().err
    assert "was started with data.filter.max_words=250, not 2; repeat its command" in message
    with lock_run(tmp_path):
        assert cli.main("prepare", words(copy, tmp_path)) == 2
    assert "is being filled by process" in capsys.readouterr().err


def test_what_stands_in_a_new_folder_is_kept(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("parts/train.en", ".notes.tmp-1", "train.wmt16.src"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    assert cli.main("prepare", words(copy, tmp_path)) == 2
    assert "holds train.wmt16.src, which would be written over" in capsys.readouterr().err
    (tmp_path / "train.wmt16.src").unlink()
    assert cli.main("prepare", words(copy, tmp_path)) == 0
    assert (tmp_path / "parts/train.en").read_text() == "mine"
    assert (tmp_path / ".notes.tmp-1").read_text() == "mine"


def test_a_text_that_is_gone_is_written_again(
    copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "my text"
    assert cli.main("prepare", words(copy, out)) == 0
    before = (out / "train.wmt16.src").read_bytes()
    (out / "train.wmt16.src").unlink()
    assert cli.main("prepare", words(copy, out)) == 0
    assert (out / "train.wmt16.src").read_bytes() == before
    assert "train.wmt16.src is gone; all is written anew" in caplog.text
    assert f"lcmt-train --config-dir '{out}' data=prepared" in caplog.text


def test_sources_that_changed_since_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = {side: tmp_path / f"train.{side}" for side in ("de", "en")}
    for path in files.values():
        path.write_text("eins\nzwei\n")
    text = [
        f"{key}.{side}={path}"
        for key in ("data.train.main", "data.valid")
        for side, path in zip(("src", "tgt"), files.values(), strict=True)
    ]
    langs = ["data.src_lang=de", "data.tgt_lang=en"]
    line = ["data=text", f"out={tmp_path / 'out'}", *langs, *text]
    assert [cli.main("prepare", line) for _ in range(2)] == [0, 0]
    assert "has changed since" not in caplog.text
    later = (tmp_path / "out/data/prepared.yaml").stat().st_mtime_ns + 1
    os.utime(files["en"], ns=(later, later))
    assert cli.main("prepare", line) == 0
    assert f"{files['en']} has changed since; remove {tmp_path / 'out'}" in caplog.text
    assert f"{files['de']} has" not in caplog.text
    files["en"].unlink()  # what was read may go
    assert cli.main("prepare", line) == 0


def test_the_hub_out_of_reach_is_one_line_that_names_the_local_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    assert cli.main("prepare", ["data=wmt17_zh_en", f"out={tmp_path}"]) == 3
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "cannot load wmt/wmt17 (split validation): Couldn't reach the hub; offline, give" in line


def test_killed_and_called_again(copy: Path, tmp_path: Path) -> None:
    assert cli.main("prepare", words(copy, tmp_path / "straight")) == 0
    out = tmp_path / "killed"
    call = [sys.executable, "-c", PROGRAM, *words(copy, out, "part_pairs=1")]
    child = subprocess.Popen(call, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while len([*out.glob(f"{PARTS}/wmt16.*")]) < 40 and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    done = {path.name for path in out.glob(f"{PARTS}/wmt16.*")}
    assert len(done) >= 39
    assert cli.main("prepare", words(copy, out, "part_pairs=500")) == 0
    for path in (tmp_path / "straight").glob("t*.*"):
        assert (out / path.name).read_bytes() == path.read_bytes()
