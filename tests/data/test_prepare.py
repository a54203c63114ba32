"""A corpus read once and kept as text: cleaned, held out, the same however it was interrupted."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightconv_mt.data import prepare
from lightconv_mt.data.corpus import (
    CorpusConfig,
    FilterConfig,
    SentencePair,
    SourceConfig,
    SourceFormat,
    read_corpus,
)
from lightconv_mt.data.prepare import prepare_corpus
from lightconv_mt.errors import DataError

Files = dict[str, bytes]
SRC = [f"Satz {n % 90} hier" + " sehr" * (n % 12) for n in range(100)]
TGT = [f"sentence {n % 90} here" + " very" * (n % 12) for n in range(100)]


@pytest.fixture
def corpus(
    text_source: Callable[..., SourceConfig], corpus_of: Callable[..., CorpusConfig]
) -> CorpusConfig:
    """Two sources with ten long pairs each and duplicates within and between them."""
    config = corpus_of(
        a=text_source(SRC[:60], TGT[:60]), b=text_source(SRC[50:], TGT[50:], name="b")
    )
    config.filter = FilterConfig(max_words=12)
    config.test = text_source(["x y"], ["z"], name="test")
    return config


def run(
    corpus: CorpusConfig, folder: Path, *, hold_out_every: int | None = None, part_pairs: int = 7
) -> Files:
    """What is in the folder in the end."""
    folder.mkdir(exist_ok=True)
    prepare_corpus(corpus, folder, hold_out_every=hold_out_every, part_pairs=part_pairs)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def lines(files: Files, name: str) -> list[str]:
    return files[name].decode().split("\n")[:-1]


def test_the_text_is_what_training_would_have_read(corpus: CorpusConfig, tmp_path: Path) -> None:
    files = run(corpus, tmp_path / "out")
    direct = read_corpus(corpus)
    pairs = [pair for _, pair in direct.pairs()]
    sides = [
        [line for name in "ab" for line in lines(files, f"train.{name}.{side}")]
        for side in ("src", "tgt")
    ]
    assert [*map(SentencePair, *sides)] == pairs
    assert 60 < len(pairs) < 90
    assert lines(files, "valid.src") == SRC[:60]  # not filtered
    assert (files["test.src"], files["test.tgt"]) == (b"x y\n", b"z\n")
    assert lines(files, "report.txt") == [*direct.report.lines()]
    assert sum(direct.report.dropped["b"].values()) == 16
    assert {*files} == {
        *("report.txt", "train.a.src", "train.a.tgt", "train.b.src", "train.b.tgt"),
        *("valid.src", "valid.tgt", "test.src", "test.tgt"),
    }


@pytest.mark.parametrize("part_pairs", [13, 60, 1000])
def test_the_size_of_parts_changes_nothing(
    corpus: CorpusConfig, tmp_path: Path, part_pairs: int
) -> None:
    for every in (None, 7):
        one = run(corpus, tmp_path / f"one{every}", hold_out_every=every)
        other = run(corpus, tmp_path / f"other{every}", hold_out_every=every, part_pairs=part_pairs)
        assert one == other


def test_every_nth_pair_is_held_out(corpus: CorpusConfig, tmp_path: Path) -> None:
    pairs = [pair for _, pair in read_corpus(corpus).pairs()]
    files = run(corpus, tmp_path / "out", hold_out_every=23)
    assert lines(files, "valid.src") == [pair.src for pair in pairs[22::23]]
    assert lines(files, "valid.tgt") == [pair.tgt for pair in pairs[22::23]]
    kept = lines(files, "train.a.src") + lines(files, "train.b.src")
    assert kept == [pair.src for number, pair in enumerate(pairs, start=1) if number % 23]
    assert "a (held out): 2 pairs kept" in files["report.txt"].decode()


class Death(BaseException):
    """What no handler catches."""


def test_death_at_any_change_of_the_disk_costs_nothing_of_what_is_done(
    corpus: CorpusConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = run(corpus, tmp_path / "straight", hold_out_every=9, part_pairs=20)
    actions, last = 0, -1
    begun: list[str] = []

    def dying(action: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any, **options: Any) -> Any:
            nonlocal actions
            actions += 1
            if actions == last:
                raise Death
            return action(*arguments, **options)

        return act

    def noted(path: Path, *rest: Any) -> Any:
        begun.append(path.name)
        return original(path, *rest)

    moments = (os, "fsync"), (os, "replace"), (Path, "replace"), (shutil, "copyfileobj")
    for owner, name in moments:
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
    original = prepare._write_part
    monkeypatch.setattr(prepare, "_write_part", noted)
    run(corpus, tmp_path / "counted", hold_out_every=9, part_pairs=20)
    total = actions
    assert total > 50
    for moment in range(1, total + 1, 5):
        folder, actions, last = tmp_path / str(moment), 0, moment
        with pytest.raises(Death):
            run(corpus, folder, hold_out_every=9, part_pairs=20)
        done = {path.name for path in folder.glob(f"{prepare.PARTS}/*")}
        last = -1
        begun.clear()
        assert run(corpus, folder, hold_out_every=9, part_pairs=20) == straight
        assert not done & {*begun}
        assert {*begun} | done >= {"a.00000", "b.00002"}


@pytest.mark.parametrize("damage", ["short", "missing", "report", "gap"])
def test_damaged_parts_are_made_anew(
    corpus: CorpusConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    straight = run(corpus, tmp_path / "straight")
    with monkeypatch.context() as patched, pytest.raises(Death):
        patched.setattr(prepare, "_join", lambda *_: (_ for _ in ()).throw(Death()))
        run(corpus, tmp_path / "out")
    part = tmp_path / "out" / prepare.PARTS / "a.00003"
    if damage == "short":
        (part / "src").write_bytes((part / "src").read_bytes()[:-3])
    elif damage == "missing":
        (part / "held.tgt").unlink()
    elif damage == "report":
        (part / "part.json").write_text(json.dumps({"read": 7}))
    else:
        part.rename(part.with_name("a.00099"))
    assert run(corpus, tmp_path / "out") == straight
    assert "is damaged or out of order; read anew" in caplog.text


def test_parts_of_a_file_that_has_changed_are_read_anew(
    text_source: Callable[..., SourceConfig],
    corpus_of: Callable[..., CorpusConfig],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    src, tgt = ([f"{side} {n}" for n in range(30)] for side in ("Satz", "line"))
    config = corpus_of(a=text_source(src, [*tgt[:5], "stray", *tgt[5:]]))
    config.valid = text_source(["x"], ["y"], name="valid")
    with pytest.raises(DataError, match="has 30 lines but .* has 31"):
        run(config, tmp_path / "out")
    text_source(src, tgt)
    files = run(config, tmp_path / "out")
    assert (lines(files, "train.a.src"), lines(files, "train.a.tgt")) == (src, tgt)
    assert "training files have changed since they were read; read anew" in caplog.text


def test_lines_stay_lines(
    write: Callable[[str, bytes], str], corpus_of: Callable[..., CorpusConfig], tmp_path: Path
) -> None:
    rows = [
        {"de": "ein\nHaus\r\n", "en": "a\rhouse"},
        {"de": "zwei\u2028Häuser", "en": "two"},
    ]
    path = write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    config = corpus_of(a=SourceConfig(format=SourceFormat.json, path=path))
    files = run(config, tmp_path / "out")
    assert files["train.a.src"] == "ein Haus \nzwei\u2028Häuser\n".encode()
    assert files["train.a.tgt"] == b"a house\ntwo\n"


def test_nothing_left_nothing_to_validate_with_and_a_full_disk_are_told_in_one_line(
    corpus: CorpusConfig,
    text_source: Callable[..., SourceConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(DataError, match=r"cannot write .*out: No space left .*goes on from"):
            run(corpus, tmp_path / "out")
    assert not [*(tmp_path / "out").glob("*.src")]
    with pytest.raises(DataError, match=r"hold_out_every=99 holds out none of \d+ pairs; give a l"):
        run(corpus, tmp_path / "none", hold_out_every=99)
    corpus.filter = FilterConfig(max_words=1)
    with pytest.raises(DataError, match="no training pair is left; a: 0 pairs kept; a: 60 pairs"):
        run(corpus, tmp_path / "empty")
    corpus.valid = text_source([], [], name="valid")
    with pytest.raises(DataError, match=r"data\.valid has no sentence pair; give some"):
        run(corpus, tmp_path / "unjudged")
