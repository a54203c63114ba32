"""The script that exports: what it writes and what it says."""

from pathlib import Path

import pytest
from toy_run import write_toy_run

import export


def test_a_run_is_exported_and_nonsense_takes_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, out = write_toy_run(tmp_path / "run"), tmp_path / "out"
    assert export.main([str(run_dir), str(out), "--no-onnx"]) == 0
    assert {path.name for path in out.iterdir()} == {
        *("encoder.pt2", "step.pt2", "interface.json", "manifest.json"),
        *("tokenizer.model", "tokenizer.sha256"),
    }
    assert export.main([str(tmp_path), str(tmp_path / "other"), "--no-onnx"]) == 4
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "is no run folder" in error
    (tmp_path / "file").write_text("no folder")
    assert export.main([str(run_dir), str(tmp_path / "file" / "out"), "--no-onnx"]) == 4
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: cannot write {tmp_path}/file/out (") and "run_dir" not in error
