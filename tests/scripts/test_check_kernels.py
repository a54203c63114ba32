"""The driver: one failing stage fails it, and without a GPU the GPU scripts claim nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import check_kernels

SCRIPTS = Path(check_kernels.__file__).parent


def test_a_failing_stage_is_named_and_the_others_still_run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def command(stage: str, *, reduced: bool) -> list[str]:
        return ["-c", f"print('{stage}', {reduced}); exit({int(stage == 'aot')})"]

    monkeypatch.setattr(check_kernels, "stage_command", command)
    monkeypatch.setattr(sys, "argv", ["check_kernels", "numerics", "aot", "traffic", "--reduced"])
    assert check_kernels.main() == 1
    printed = capfd.readouterr().out
    assert all(f"{stage} True" in printed for stage in ("numerics", "aot", "traffic"))
    assert "== aot FAILED" in printed and printed.count("passed") == 2
    monkeypatch.setattr(sys, "argv", ["check_kernels", "traffic"])
    assert check_kernels.main() == 0


def test_an_unknown_stage_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["check_kernels", "spills"])
    with pytest.raises(SystemExit, match="2"):
        check_kernels.main()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
@pytest.mark.parametrize("script", ["test_gpu.py", "bench_gpu.py", "host_costs.py"])
def test_without_a_gpu_nothing_is_claimed(script: str, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and "no GPU here; nothing was run" in done.stdout
    assert not list(tmp_path.iterdir())
