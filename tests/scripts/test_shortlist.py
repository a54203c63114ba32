"""A shortlist from training pairs to translations, as a user makes and uses it."""

import json
from pathlib import Path
from typing import Any

import pytest
from toy_run import WORDS, write_toy_run

import shortlist
from lightconv_mt.api import Translator
from lightconv_mt.cli import translate
from lightconv_mt.decode.shortlist import FILE, Shortlist

SENTENCES = [
    [WORDS[(n * step + shift) % 15] for n in range(5)]
    for step in (1, 2, 4, 7)
    for shift in range(15)
]


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toy run with training pairs, in which every word stands for the next one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    following = dict(zip(WORDS, [*WORDS[1:], WORDS[0]], strict=True))
    Path("none.src").write_text("".join(f"{' '.join(words)}\n" for words in SENTENCES))
    Path("none.tgt").write_text(
        "".join(f"{' '.join(following[word] for word in reversed(words))}\n" for words in SENTENCES)
    )
    return write_toy_run(tmp_path / "run")


def run_translate(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["lcmt-translate", *words])
    return translate()


def test_it_is_learnt_told_and_used(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(run_dir), "--per-piece", "2", "--frequent", "1"]
    assert shortlist.main(words) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{run_dir / FILE}: ") and "300 tokens a sentence" in said
    assert float(said.split("; ")[1].split("%")[0]) > 95

    translator = Translator.load(run_dir, kernels="torch", threads=1)
    tokenizers = translator._translator.tokenizers
    lists = Shortlist.load(run_dir / FILE, tokenizers)
    for word, wanted in (("ba", "de"), ("zu", "ba")):
        source = tokenizers.src.encode(word)
        assert set(tokenizers.tgt.encode(wanted)) | set(source) <= set(
            lists.tokens(source).tolist()
        )

    lines = [" ".join(words) for words in SENTENCES[:8]]
    Path("in.txt").write_text("\n".join(lines))
    common = (f"run_dir={run_dir}", "input=in.txt", "runtime.kernels=torch", "decode.max_length=9")
    for name, option in (("with", "auto"), ("path", str(run_dir / FILE)), ("without", "null")):
        assert (
            run_translate(monkeypatch, *common, f"output={name}", f"decode.shortlist={option}") == 0
        )
    found = Path("with").read_text().splitlines()
    assert found == [
        each.text for each in translator.translate(lines, shortlist="auto", max_length=9)
    ]
    assert (
        Path("path").read_text().splitlines() == found != Path("without").read_text().splitlines()
    )


def test_mistakes_take_one_line(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in.txt").write_text("ba de\n")
    common: Any = (f"run_dir={run_dir}", "input=in.txt", "output=out", "decode.shortlist=auto")
    assert run_translate(monkeypatch, *common) == 4
    assert "scripts/shortlist.py RUN" in capsys.readouterr().err.splitlines()[-1]
    assert not Path("out").exists()
    assert shortlist.main([str(run_dir.parent)]) == 4
    assert "is no run folder" in capsys.readouterr().err.splitlines()[-1]
    assert shortlist.main([str(run_dir), "--out", "nowhere/file"]) == 3
    assert "cannot write nowhere/file" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(SystemExit):
        shortlist.main([str(run_dir), "--per-piece", "0"])
    assert "0 is below 1" in capsys.readouterr().err
    assert json.dumps(sorted(each.name for each in run_dir.iterdir())).count("tmp") == 0
