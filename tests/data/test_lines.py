"""Lines are bytes between \\n, whatever else they hold."""

import gzip
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightconv_mt.data.lines import BadUtf8, decode_line, read_chunks, read_lines, without_mark
from lightconv_mt.errors import DataError

Write = Callable[[str, bytes], str]
NASTY = [
    "a\u2028b",
    "c\x85d",
    "e\x0bf",
    "g\x0ch",
    "i\rj",
    "k\u2029l",
    "m\x00n",
    "",
    " ",
    "\ufeffinside",
    "👩‍👩‍👧",
]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("final", [True, False])
def test_only_newline_ends_a_line(write: Write, end: str, zipped: bool, final: bool) -> None:
    raw = (end.join(NASTY) + (end if final else "")).encode()
    path = write("nasty", gzip.compress(raw) if zipped else raw)
    assert list(read_lines(path)) == NASTY


@pytest.mark.parametrize("zipped", [False, True])
def test_a_pipe_is_read_from_its_first_byte(tmp_path: Path, zipped: bool) -> None:
    raw = "".join(f"{line}\n" for line in NASTY * 3000).encode()
    os.mkfifo(tmp_path / "pipe")
    content = gzip.compress(raw) if zipped else raw
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,))
    writer.start()
    assert list(read_lines(tmp_path / "pipe")) == NASTY * 3000
    writer.join()


def test_empty_file_and_byte_order_mark(write: Write) -> None:
    assert list(read_lines(write("empty", b""))) == []
    assert list(read_lines(write("newline", b"\n"))) == [""]
    assert list(read_lines(write("bom", b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n"))) == ["a", "\ufeffb"]


def test_bad_bytes_are_replaced_and_counted_or_refused(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    path = write("bad", b"good\n\xff\xfe\n\xc3\n\xed\xa0\x80x\n")
    assert list(read_lines(path)) == ["good", "\ufffd\ufffd", "\ufffd", "\ufffd\ufffd\ufffdx"]
    assert "replaced in 3 lines" in caplog.text
    with pytest.raises(DataError, match=r"bad, line 2: invalid UTF-8"):
        list(read_lines(path, on_bad_utf8=BadUtf8.error))


def test_unreadable_files_are_named(write: Write) -> None:
    with pytest.raises(DataError, match="cannot read /nowhere/x: No such file"):
        list(read_lines("/nowhere/x"))
    whole = gzip.compress(b"one\ntwo\n" * 100)
    with pytest.raises(DataError, match=r"cut\.gz"):
        list(read_lines(write("cut.gz", whole[:-12])))
    with pytest.raises(DataError, match=r"junk\.gz"):
        list(read_lines(write("junk.gz", whole + b"junk behind it")))


@given(st.binary(max_size=60))
def test_any_bytes_become_text(raw: bytes) -> None:
    line = raw.replace(b"\n", b"") + b"\n"
    text, replaced = decode_line(line)
    assert "\n" not in text
    if not replaced:
        assert text.encode() in (line[:-1], line[:-2])


@given(st.lists(st.binary(max_size=5).map(lambda raw: raw.replace(b"\n", b"")), max_size=12))
def test_a_mark_is_dropped_at_the_very_beginning_only(lines: list[bytes]) -> None:
    raw = [b"\xef\xbb\xbf" + line + b"\n" for line in lines]
    found = list(without_mark(raw))
    assert found[:1] == [line + b"\n" for line in lines[:1]]
    assert found[1:] == raw[1:]


@pytest.mark.parametrize("count", [0, 1, 5, 6, 7])
def test_chunks_hold_the_lines_that_are_wanted_and_count_the_others(
    write: Write, count: int
) -> None:
    raw = [b"%d\n" % number for number in range(count)]
    path = write("in", b"".join(raw))
    found = list(read_chunks(path, 3, wanted=lambda number: number % 2 == 0))
    assert found == [
        (len(raw[start : start + 3]), [] if start % 2 else raw[start : start + 3])
        for start in range(0, count, 3)
    ]
