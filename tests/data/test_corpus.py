"""Reading parallel sources, refusing what does not fit, filtering and counting."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lightconv_mt.data.corpus import (
    CorpusConfig,
    FilterConfig,
    SentencePair,
    SourceConfig,
    SourceFormat,
    read_corpus,
    read_source,
)
from lightconv_mt.errors import ConfigError, DataError

Write = Callable[[str, bytes], str]
Build = Callable[..., SourceConfig]
BuildCorpus = Callable[..., CorpusConfig]
PAIRS = [
    SentencePair("ein Haus", "a house"),
    SentencePair("zwei\u2028Häuser", "two\x85 houses"),
    SentencePair("", "x"),
]


def read(source: SourceConfig, corpus_of: BuildCorpus) -> list[SentencePair]:
    return list(read_source(source, corpus_of(a=source)))


def test_text(text_source: Build, corpus_of: BuildCorpus) -> None:
    source = text_source([pair.src for pair in PAIRS], [pair.tgt for pair in PAIRS])
    assert read(source, corpus_of) == PAIRS


@pytest.mark.parametrize(("src", "tgt"), [(3, 2), (2, 3), (0, 1), (1000, 999)])
def test_line_counts_that_differ_are_refused_with_both(
    text_source: Build, corpus_of: BuildCorpus, src: int, tgt: int
) -> None:
    source = text_source(["a"] * src, ["b"] * tgt)
    with pytest.raises(DataError, match=rf"a\.src has {src:,} lines but .*a\.tgt has {tgt:,}"):
        read(source, corpus_of)


def test_tsv_columns(write: Write, corpus_of: BuildCorpus) -> None:
    path = write("pairs.tsv", b'1\tein "Haus\t a house \n2\tzwei\ttwo\textra\n')
    source = SourceConfig(format=SourceFormat.tsv, path=path, src="1", tgt="2")
    assert read(source, corpus_of) == [('ein "Haus', " a house "), ("zwei", "two")]
    short = SourceConfig(format=SourceFormat.tsv, path=path, src="1", tgt="3")
    with pytest.raises(DataError, match=r"pairs\.tsv, line 1: 3 columns, but columns 1 and 3"):
        read(short, corpus_of)
    with pytest.raises(ConfigError, match="column of a tsv source is 'de'"):
        read(SourceConfig(format=SourceFormat.tsv, path=path, src="de"), corpus_of)


def test_json_lines_and_nested_columns(write: Write, corpus_of: BuildCorpus) -> None:
    rows = [{"translation": {"de": pair.src, "en": pair.tgt}} for pair in PAIRS]
    path = write("pairs.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    source = SourceConfig(
        format=SourceFormat.json, path=path, src="translation.de", tgt="translation.en"
    )
    assert read(source, corpus_of) == PAIRS
    with pytest.raises(DataError, match="row 1: no column de; there is translation"):
        read(SourceConfig(format=SourceFormat.json, path=path), corpus_of)


@pytest.mark.parametrize("row", ['{"de": 1, "en": "x"}', '{"de": null, "en": "x"}'])
def test_json_values_that_are_no_text_are_refused(
    write: Write, corpus_of: BuildCorpus, row: str
) -> None:
    path = write("bad.jsonl", f"{row}\n".encode())
    with pytest.raises(DataError, match=r"bad\.jsonl, row 1: de is .*no text"):
        read(SourceConfig(format=SourceFormat.json, path=path), corpus_of)


def test_parquet_and_a_local_data_set_folder(tmp_path: Path, corpus_of: BuildCorpus) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    folder = tmp_path / "dataset"
    folder.mkdir()
    table = pa.table({"de": [pair.src for pair in PAIRS], "en": [pair.tgt for pair in PAIRS]})
    parquet.write_table(table, folder / "train.parquet")
    by_file = SourceConfig(format=SourceFormat.parquet, path=str(folder / "train.parquet"))
    assert read(by_file, corpus_of) == PAIRS
    by_folder = SourceConfig(format=SourceFormat.hub, path=str(folder))
    assert read(by_folder, corpus_of) == PAIRS
    (folder / "train.parquet").write_bytes((folder / "train.parquet").read_bytes()[:-20])
    with pytest.raises(DataError, match=r"cannot load .*train\.parquet"):
        read(by_file, corpus_of)


@pytest.mark.parametrize("form", ["parquet", "split", "splits"])
def test_folders_that_hold_a_data_set(tmp_path: Path, corpus_of: BuildCorpus, form: str) -> None:
    from datasets import Dataset, DatasetDict, Features, Translation

    rows = [{"de": f"d{number}", "en": f"e{number}"} for number in range(10)]
    table = Dataset.from_dict(
        {"translation": rows}, features=Features({"translation": Translation(["de", "en"])})
    )
    folder = tmp_path / "wmt"
    if form == "parquet":
        folder.mkdir()
        table.to_parquet(folder / "train-00000-of-00001.parquet")
    elif form == "split":
        table.save_to_disk(folder)
    else:
        DatasetDict({"train": table, "validation": table.select([0])}).save_to_disk(folder)
    source = SourceConfig(
        format=SourceFormat.hub, path=str(folder), src="translation.de", tgt="translation.en"
    )
    pairs = [(row["de"], row["en"]) for row in rows]
    assert read(source, corpus_of) == pairs
    assert list(read_source(source, corpus_of(a=source), start=7)) == pairs[7:]
    source.split = "validation"
    if form == "splits":
        assert read(source, corpus_of) == pairs[:1]
        source.split = "test"
        with pytest.raises(DataError, match="has no split test; there is train, validation"):
            read(source, corpus_of)


def test_pairs_at_the_beginning_may_be_left_out(text_source: Build, corpus_of: BuildCorpus) -> None:
    source = text_source(["a", "b", "c"], ["x", "y", "z"])
    assert list(read_source(source, corpus_of(a=source), start=2)) == [("c", "z")]


def test_a_hub_name_offline_names_the_local_option(
    corpus_of: BuildCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    asked = []

    def unreachable(*names: object, **options: object) -> None:
        asked.append((*names, options["split"], options["revision"]))
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    source = SourceConfig(format=SourceFormat.hub, path="wmt16", subset="de-en", revision="v1")
    with pytest.raises(
        DataError, match=r"cannot load wmt16 .*offline, give path=FOLDER of a local copy"
    ):
        read(source, corpus_of)
    assert asked == [("wmt16", "de-en", "train", "v1")]


def test_missing_files_are_named(corpus_of: BuildCorpus) -> None:
    for kind in (SourceFormat.json, SourceFormat.parquet, SourceFormat.tsv):
        with pytest.raises(DataError, match="cannot read /nowhere/x: [Nn]o such file"):
            read(SourceConfig(format=kind, path="/nowhere/x"), corpus_of)


def test_a_pipe_is_refused_for_it_is_read_several_times(
    tmp_path: Path, corpus_of: BuildCorpus
) -> None:
    os.mkfifo(tmp_path / "pipe")
    pipe = str(tmp_path / "pipe")
    for values in ({"src": pipe, "tgt": pipe}, {"path": pipe}):
        kind = SourceFormat.text if "src" in values else SourceFormat.tsv
        with pytest.raises(DataError, match=r"pipe is no file, and is read several times; write"):
            read(SourceConfig(format=kind, **values), corpus_of)


def test_each_rule_drops_counts_and_shows(text_source: Build, corpus_of: BuildCorpus) -> None:
    long = "w " * 31
    src = [
        "keep me",
        "",
        "long " + long,
        "one two three four five six",
        "keep me",
        "same",
        "c" * 300,
    ]
    tgt = ["kept", "empty", "x", "w " * 20, "kept", "same", "chars"]
    config = corpus_of(a=text_source(src, tgt), b=text_source(["keep me"], ["kept"], name="b"))
    config.filter = FilterConfig(max_words=30, max_chars=200, max_ratio=3.0, drop_copies=True)
    corpus = read_corpus(config)
    assert list(corpus.pairs()) == [("a", ("keep me", "kept"))]
    dropped = {source: dict(counts) for source, counts in corpus.report.dropped.items()}
    assert dropped == {
        "a": {
            "empty side": 1,
            "longer than 30 words or 200 characters": 2,
            "length ratio above 3": 1,
            "duplicate": 1,
            "target copies the source": 1,
        },
        "b": {"duplicate": 1},
    }
    report = "\n".join(corpus.report.lines())
    assert "a: 1 pairs kept" in report
    assert "a: 2 pairs dropped: longer than 30 words or 200 characters" in report
    assert "'same' | 'same'" in report


def test_nothing_left_is_an_error(text_source: Build, corpus_of: BuildCorpus) -> None:
    with pytest.raises(DataError, match="no training pair is left"):
        list(read_corpus(corpus_of(a=text_source([""], ["x"]))).pairs())


def test_the_digest_follows_content_and_filter(text_source: Build, corpus_of: BuildCorpus) -> None:
    digests = set()
    for text, limit in (("x", 250), ("y", 250), ("x", 250), ("x y", 1)):
        config = corpus_of(a=text_source([text, "z"], ["b", "c"]))
        config.filter = FilterConfig(max_words=limit)
        digests.add(read_corpus(config).digest())
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": SourceFormat.text, "src": "a"}, "needs two files"),
        ({"format": SourceFormat.json}, "format json needs path"),
        ({"format": SourceFormat.cldr, "weight": 0.0}, "weight of a data source is 0.0"),
    ],
)
def test_impossible_sources_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SourceConfig(**values)
