"""Chunks that are stored stay stored, whatever is cut off behind them."""

import shutil
from pathlib import Path

import pytest

from lightconv_mt.data.chunks import (
    ChunkWriter,
    is_joined,
    join_chunks,
    stored_chunks,
    total_counts,
)
from lightconv_mt.errors import ConfigError, DataError

TEXTS = [[b"zero\n", b"0"], [b"", b"\x00\n\xff"], [b"two\ntwo\n" * 3, b""], [b"3", b"33"]]


def write(folder: Path, name: str, numbers: list[int]) -> None:
    with ChunkWriter(folder, name) as writer:
        for number in numbers:
            writer.append(number, TEXTS[number], {"lines": number, "odd": 1})


def joined(folder: Path) -> list[bytes]:
    outputs = [folder / "first", folder / "second"]
    join_chunks(stored_chunks(folder), outputs)
    return [path.read_bytes() for path in outputs]


EXPECTED = [b"".join(text[side] for text in TEXTS) for side in (0, 1)]


def test_parts_are_joined_in_the_order_of_their_chunks(tmp_path: Path) -> None:
    write(tmp_path, "a", [1, 3])
    write(tmp_path, "b", [0, 2])
    stored = stored_chunks(tmp_path)
    assert sorted(stored) == [0, 1, 2, 3]
    assert total_counts(stored.values()) == {"lines": 6, "odd": 4}
    assert joined(tmp_path) == EXPECTED
    assert not list(tmp_path.glob(".*"))
    for place, name in enumerate(("first", "second")):
        output = tmp_path / name
        assert is_joined(stored, output, place)
        content = output.read_bytes()
        for other in (content[:-1], b"Z" + content[1:], b"", content + b"\n"):
            output.write_bytes(other)
            assert not is_joined(stored, output, place)
        output.unlink()
        assert not is_joined(stored, output, place)


def test_any_torn_end_costs_no_whole_chunk(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    write(whole, "a", [0, 1, 2])
    sizes = {name: (whole / name).stat().st_size for name in ("a.bytes", "a.jsonl")}
    seen = set()
    for name, size in sizes.items():
        for length in range(size + 1):
            torn = tmp_path / "torn"
            shutil.copytree(whole, torn)
            with (torn / name).open("ab") as file:
                file.truncate(length)
            before = stored_chunks(torn)
            seen.add(len(before))
            write(torn, "a", [number for number in range(4) if number not in before])
            assert stored_chunks(torn).items() >= before.items()
            assert joined(torn) == EXPECTED, (name, length)
            shutil.rmtree(torn)
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("tail", [b"\x00" * 90, b"{}\n", b'{"number": 3}\n', b"null\n", b"\xff\n"])
def test_what_is_no_entry_ends_an_index(tmp_path: Path, tail: bytes) -> None:
    write(tmp_path, "a", [0, 1, 2])
    for name in ("a.jsonl", "a.bytes"):
        with (tmp_path / name).open("ab") as file:
            file.write(tail)
    assert sorted(stored_chunks(tmp_path)) == [0, 1, 2]
    write(tmp_path, "a", [3])
    assert joined(tmp_path) == EXPECTED


def test_damaged_bytes_are_found_and_can_be_made_anew(tmp_path: Path) -> None:
    write(tmp_path, "a", [0, 2])
    write(tmp_path, "b", [1, 3])
    content = bytearray((tmp_path / "a.bytes").read_bytes())
    content[7] ^= 1
    (tmp_path / "a.bytes").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.bytes is damaged in chunk 2; remove it"):
        joined(tmp_path)
    assert not (tmp_path / "first").exists()
    (tmp_path / "a.bytes").unlink()
    assert sorted(stored_chunks(tmp_path)) == [1, 3]
    write(tmp_path, "a", [0, 2])
    assert joined(tmp_path) == EXPECTED


def test_two_processes_do_not_write_one_part(tmp_path: Path) -> None:
    with (
        ChunkWriter(tmp_path, "a"),
        pytest.raises(ConfigError, match="being written by another process"),
    ):
        ChunkWriter(tmp_path, "a")
    write(tmp_path, "a", [0])
