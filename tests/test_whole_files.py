"""Files that are whole or not there, whatever fails or dies on the way."""

import errno
import os
import subprocess
from functools import partial
from pathlib import Path

import pytest
from children import exit_code, start
from deaths import KILLED, die_at_action

from lightconv_mt import whole_files
from lightconv_mt.whole_files import aside, replace_text
from lightconv_mt.whole_files import whole_files as writing


def write_both(folder: Path, text: str) -> None:
    with writing(folder / "first", folder / "second") as files:
        for file in files:
            file.write(text.encode())


def contents(folder: Path) -> list[str]:
    return [(folder / name).read_text() for name in ("first", "second")]


@pytest.mark.parametrize("dies", [False, True])
def test_whatever_ends_it_old_files_or_new_ones_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    actions: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(whole_files, "announce", lambda action, path: actions.append(action))
        write_both(tmp_path, "old")
    assert actions == ["write"] * 2 + ["sync"] * 2 + ["rename"] * 2 + ["sync"]
    seen = set()
    for fatal in range(len(actions)):
        write_both(tmp_path, "old")
        if dies:
            child = start(partial(die_at_action, fatal), partial(write_both, tmp_path, "new"))
            assert exit_code(child) == KILLED
        else:
            left = iter(range(len(actions)))

            def fail(action: str, path: Path, left=left, fatal=fatal) -> None:
                if next(left) == fatal:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
                patch.setattr(whole_files, "announce", fail)
                write_both(tmp_path, "new")
            assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]
        seen.add(tuple(contents(tmp_path)))
    # They take their names in order.
    assert seen == {("old", "old"), ("new", "old"), ("new", "new")}
    write_both(tmp_path, "last")
    assert contents(tmp_path) == ["last", "last"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


def test_an_error_of_the_writer_changes_nothing(tmp_path: Path) -> None:
    write_both(tmp_path, "old")
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "first") as (file,):
        file.write(b"half")
        raise KeyboardInterrupt
    assert contents(tmp_path) == ["old", "old"]
    assert len(list(tmp_path.iterdir())) == 2


def test_only_what_dead_processes_left_of_that_file_is_removed(tmp_path: Path) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    dead, alive = child.pid, os.getppid()
    gone = [f".a[1].tmp-{dead}"]
    kept = [f".a[1].tmp-{alive}", f".a1.tmp-{dead}", ".a[1].tmp-notes", f"a[1].tmp-{dead}"]
    for name in (*gone, *kept):
        (tmp_path / name).touch()
    (tmp_path / f".b.tmp-{dead}").mkdir()
    replace_text(tmp_path / "a[1]", "ä")
    assert (tmp_path / "a[1]").read_bytes() == "ä".encode()
    there = {path.name for path in tmp_path.iterdir()}
    assert there == {"a[1]", *kept, f".b.tmp-{dead}"}
    whole_files.remove_leftovers(tmp_path / "b")
    assert not (tmp_path / f".b.tmp-{dead}").exists()
    assert aside(tmp_path / "b").name == f".b.tmp-{os.getpid()}"
