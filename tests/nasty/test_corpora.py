"""Corpora as they are found in the wild: kept whole, repaired and counted, or refused by name."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lightconv_mt.data.corpus import (
    CorpusConfig,
    SentencePair,
    SourceConfig,
    SourceFormat,
    read_corpus,
    read_source,
)
from lightconv_mt.data.lines import BadUtf8
from lightconv_mt.errors import ConfigError, DataError

Read = Callable[..., list[SentencePair]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads a source of one or two files that hold the given bytes."""

    def read_bytes(
        kind: SourceFormat, *files: bytes, bad_utf8: BadUtf8 = BadUtf8.replace, **values: str
    ) -> list[SentencePair]:
        paths = []
        for number, content in enumerate(files):
            paths.append(str(tmp_path / f"file{number}"))
            Path(paths[-1]).write_bytes(content)
        names = {"src": paths[0], "tgt": paths[1]} if len(paths) == 2 else {"path": paths[0]}
        source = SourceConfig(format=kind, **names, **values)
        corpus = CorpusConfig(
            src_lang="en", tgt_lang="de", train={"a": source}, valid=source, on_bad_utf8=bad_utf8
        )
        return list(read_source(source, corpus))

    return read_bytes


EMOJI = "👩‍👩‍👧 family".encode()

# Source bytes, target bytes, and the source sides that training is to see.
KEPT = {
    "plain": (b"a\nb\n", b"x\ny\n", ["a", "b"]),
    "no final newline": (b"a\nb", b"x\ny", ["a", "b"]),
    "no final newline on one side": (b"a\nb", b"x\ny\n", ["a", "b"]),
    "carriage returns": (b"a\r\nb\r\n", b"x\ny\n", ["a", "b"]),
    "lone carriage return": (b"a\rb\nc\n", b"x\ny\n", ["a\rb", "c"]),
    "two carriage returns": (b"a\r\r\n", b"x\n", ["a\r"]),
    "line separator": ("a\u2028b\n".encode(), b"x\n", ["a\u2028b"]),
    "paragraph separator": ("a\u2029b\n".encode(), b"x\n", ["a\u2029b"]),
    "next line": ("a\x85b\n".encode(), b"x\n", ["a\x85b"]),
    "vertical tab": (b"a\x0bb\n", b"x\n", ["a\x0bb"]),
    "form feed": (b"a\x0cb\n", b"x\n", ["a\x0cb"]),
    "file separators": (b"a\x1cb\x1dc\x1ed\n", b"x\n", ["a\x1cb\x1dc\x1ed"]),
    "null": (b"a\x00b\n", b"x\n", ["a\x00b"]),
    "only newlines": (b"\n\n\n", b"\n\n\n", ["", "", ""]),
    "empty files": (b"", b"", []),
    "one empty line": (b"\n", b"\n", [""]),
    "empty source": (b"\nb\n", b"x\ny\n", ["", "b"]),
    "white space": (b"  \t \nb\n", b"x\ny\n", ["  \t ", "b"]),
    "byte order mark": (b"\xef\xbb\xbfa\nb\n", b"x\ny\n", ["a", "b"]),
    "byte order mark inside": ("a\ufeffb\n".encode(), b"x\n", ["a\ufeffb"]),
    "two byte order marks": (b"\xef\xbb\xbf\xef\xbb\xbfa\n", b"x\n", ["\ufeffa"]),
    "emoji": (EMOJI + b"\n", b"x\n", [EMOJI.decode()]),
    "combining storm": (("e" + "\u0301" * 999 + "\n").encode(), b"x\n", ["e" + "\u0301" * 999]),
    "right to left": ("\u202eabc\u202c\n".encode(), b"x\n", ["\u202eabc\u202c"]),
    "private use": ("\ue000\n".encode(), b"x\n", ["\ue000"]),
    "no character": ("\ufffe\n".encode(), b"x\n", ["\ufffe"]),
    "zero width": ("a\u200bb\n".encode(), b"x\n", ["a\u200bb"]),
    "no-break space": ("a\u00a0b\n".encode(), b"x\n", ["a\u00a0b"]),
    "100,000 characters": (b"a" * 100_000 + b"\n", b"x\n", ["a" * 100_000]),
    "gzip": (gzip.compress(b"a\nb\n"), b"x\ny\n", ["a", "b"]),
    "two gzip members": (gzip.compress(b"a\n") + gzip.compress(b"b\n"), b"x\ny\n", ["a", "b"]),
    "gzip of nothing": (gzip.compress(b""), b"", []),
    "literal escapes": (rb"a\n\t\u0041" + b"\n", b"x\n", [r"a\n\t\u0041"]),
    "markup": (b"<seg id='1'>a &amp; b</seg>\n", b"x\n", ["<seg id='1'>a &amp; b</seg>"]),
    "special pieces": (b"</s> <pad> <unk> <0x41>\n", b"x\n", ["</s> <pad> <unk> <0x41>"]),
}


@pytest.mark.parametrize("name", KEPT)
def test_lines_stay_paired(read: Read, name: str) -> None:
    src, tgt, expected = KEPT[name]
    pairs = read(SourceFormat.text, src, tgt)
    assert [pair.src for pair in pairs] == expected


# Bytes that are no UTF-8, and what becomes of them.
BAD_UTF8 = {
    "latin-1": (b"caf\xe9\n", "caf\ufffd"),
    "lone continuation": (b"a\x80b\n", "a\ufffdb"),
    "overlong": (b"a\xc0\xafb\n", "a\ufffd\ufffdb"),
    "truncated": (b"a\xe2\x82\n", "a\ufffd"),
    "surrogate": (b"a\xed\xa0\x80b\n", "a\ufffd\ufffd\ufffdb"),
    "beyond unicode": (b"a\xf4\x90\x80\x80\n", "a\ufffd\ufffd\ufffd\ufffd"),
    "utf-16": ("a\n".encode("utf-16-le"), "a\x00"),
    "noise": (bytes(range(128, 256)) + b"\n", None),
}


@pytest.mark.parametrize("name", BAD_UTF8)
def test_bad_bytes_are_replaced_and_counted_or_refused(
    read: Read, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    content, expected = BAD_UTF8[name]
    tgt = b"x\n" * content.count(b"\n") + (b"x" if not content.endswith(b"\n") else b"")
    first = read(SourceFormat.text, content, tgt)[0].src
    assert first == expected if expected is not None else set(first) == {"\ufffd"}
    if name == "utf-16":  # valid UTF-8 with nulls, as it happens
        return
    assert "invalid UTF-8 replaced in 1 lines" in caplog.text
    with pytest.raises(DataError, match=r"file0, line 1: invalid UTF-8; set data.on_bad_utf8"):
        read(SourceFormat.text, content, tgt, bad_utf8=BadUtf8.error)


REFUSED_TEXT = {
    "one more": (b"a\nb\nc\n", b"x\ny\n", "has 3 lines but .* has 2"),
    "one fewer": (b"a\n", b"x\ny\n", "has 1 lines but .* has 2"),
    "an empty side": (b"", b"x\n", "has 0 lines but .* has 1"),
    "many more": (b"a\n" * 1100, b"x\n" * 1000, "has 1,100 lines but .* has 1,000"),
    "a blank line at the end": (b"a\n\n", b"x\n", "has 2 lines but .* has 1"),
    "truncated gzip": (gzip.compress(b"a\n" * 9999)[:-9], b"x\n" * 9999, "cannot read .*file0"),
    "gzip and junk": (gzip.compress(b"a\n") + b"junk", b"x\n", "cannot read .*file0"),
    "damaged gzip": (gzip.compress(b"a\n")[:12] + b"\xff" * 9, b"x\n", "cannot read .*file0"),
    "gzip magic alone": (b"\x1f\x8b", b"x\n", "cannot read .*file0"),
}


@pytest.mark.parametrize("name", REFUSED_TEXT)
def test_texts_that_do_not_fit_are_refused(read: Read, name: str) -> None:
    src, tgt, message = REFUSED_TEXT[name]
    with pytest.raises(DataError, match=message):
        read(SourceFormat.text, src, tgt)


@pytest.mark.parametrize("what", ["folder", "missing", "loop"])
def test_what_is_no_file_is_named(tmp_path: Path, what: str) -> None:
    path = tmp_path / "thing"
    if what == "folder":
        path.mkdir()
    elif what == "loop":
        path.symlink_to(path)
    source = SourceConfig(format=SourceFormat.text, src=str(path), tgt=str(path))
    corpus = CorpusConfig(src_lang="en", tgt_lang="de", train={"a": source}, valid=source)
    with pytest.raises(DataError, match="cannot read .*thing"):
        list(read_source(source, corpus))


TSV = {
    "two columns": (b"a\tx\n", [("a", "x")]),
    "more columns": (b"a\tx\tnote\n", [("a", "x")]),
    "quotes are text": (b'"a\tx"\n', [('"a', 'x"')]),
    "empty cells": (b"\t\n", [("", "")]),
    "carriage returns": (b"a\tx\r\n", [("a", "x")]),
    "line separator": ("a\u2028\tx\n".encode(), [("a\u2028", "x")]),
    "no final newline": (b"a\tx", [("a", "x")]),
    "nothing": (b"", []),
    "one column": (b"a\tx\nb\n", "line 2: 1 columns"),
    "an empty line": (b"a\tx\n\n", "line 2: 1 columns"),
    "spaces for tabs": (b"a   x\n", "line 1: 1 columns"),
}


@pytest.mark.parametrize("name", TSV)
def test_tab_separated(read: Read, name: str) -> None:
    content, expected = TSV[name]
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            read(SourceFormat.tsv, content)
    else:
        assert read(SourceFormat.tsv, content) == expected


def row(**values: object) -> bytes:
    return json.dumps(values).encode() + b"\n"


JSON = {
    "plain": (row(en="a", de="x"), [("a", "x")]),
    "escapes": (b'{"en": "a\\u2028b", "de": "\\ud83d\\ude00"}\n', [("a\u2028b", "😀")]),
    "other keys": (row(id=1, en="a", de="x", more={"b": []}), [("a", "x")]),
    "empty text": (row(en="", de=""), [("", "")]),
    "a missing key": (row(en="a"), "no column de"),
    "a key missing in one row": (row(en="a", de="x") + row(en="b"), "row 2: de is None, no text"),
    "a number": (row(en=1, de="x"), "row 1: en is 1, no text"),
    "null": (row(en=None, de="x"), "row 1: en is None, no text"),
    "a list": (row(en=["a"], de="x"), r"row 1: en is \['a'\], no text"),
    "not a number": (b'{"en": NaN, "de": "x"}\n', "cannot load|no text"),
    "a broken line": (row(en="a", de="x") + b'{"en": \n', "cannot load"),
    "half a file": (row(en="a", de="x")[:-5], "cannot load"),
    "no object": (b'["a", "x"]\n', "cannot load|no column"),
    "plain text": (b"hello\n", "cannot load"),
    "nothing": (b"", "file0 has no row; give a file with some"),
    "mixed types": (row(en="a", de="x") + row(en=2, de="y"), "cannot load|no text"),
}


@pytest.mark.parametrize("name", JSON)
def test_json_lines(read: Read, name: str) -> None:
    content, expected = JSON[name]
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            read(SourceFormat.json, content)
    else:
        assert read(SourceFormat.json, content) == expected


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\x00" * 40 + b"PAR1", b"text\n"])
def test_files_that_are_no_parquet(read: Read, content: bytes) -> None:
    with pytest.raises(DataError, match="cannot load .*file0"):
        read(SourceFormat.parquet, content)


@pytest.mark.parametrize("column", ["-1", "1.0", "de", "", " 1", "0x1"])
def test_columns_that_are_no_numbers(read: Read, column: str) -> None:
    with pytest.raises(ConfigError, match="a column of a tsv source is"):
        read(SourceFormat.tsv, b"a\tx\n", src=column)


@pytest.mark.parametrize(
    ("src", "tgt", "rule"),
    [
        ("", "x", "empty side"),
        (" \t", "x", "empty side"),
        ("\u2003", "x", "empty side"),
        ("w " * 300, "x", "longer than"),
        ("w" * 3000, "x", "longer than"),
        ("w " * 100, "a b c d e f", "length ratio"),
    ],
)
def test_pairs_that_teach_nothing_are_dropped_and_counted(
    tmp_path: Path, src: str, tgt: str, rule: str
) -> None:
    for side, text in (("src", src), ("tgt", tgt)):
        (tmp_path / side).write_text(f"{text}\ngood\n")
    source = SourceConfig(
        format=SourceFormat.text, src=str(tmp_path / "src"), tgt=str(tmp_path / "tgt")
    )
    corpus = read_corpus(
        CorpusConfig(src_lang="en", tgt_lang="de", train={"a": source}, valid=source)
    )
    assert [pair for _, pair in corpus.pairs()] == [("good", "good")]
    assert any(rule in line and "1 pairs dropped" in line for line in corpus.report.lines())
