"""The library against fairseq's recorded numbers, and the script that says so."""

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from check_golden import open_imported
from lightconv_mt.interop.golden import TOLERANCES, compare_folder
from lightconv_mt.ops import Backend, resolve_backend

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "check_golden.py"


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("backend", [each for each in Backend if each is not Backend.triton])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_case_is_within_tolerance(golden: Path, backend: Backend, dtype: torch.dtype) -> None:
    comparisons = list(compare_folder(golden, backend=backend, dtype=dtype))
    failed = [comparison for comparison in comparisons if not comparison.excess <= 0]
    assert not failed
    native = resolve_backend(backend, device=torch.device("cpu")) is Backend.native
    expected = {
        quantity
        for quantity in TOLERANCES
        if not quantity.startswith("imported")
        and (native and dtype is torch.float32 or not quantity.startswith("C++"))
    }
    assert {comparison.quantity for comparison in comparisons} == expected


def test_so_is_every_imported_checkpoint(golden: Path) -> None:
    opening = partial(open_imported, Backend.auto)
    comparisons = list(
        compare_folder(golden, backend=Backend.auto, dtype=torch.float64, open_imported=opening)
    )
    imported = [each for each in comparisons if each.quantity.startswith("imported")]
    files = {each.case.partition(",")[0] for each in imported}
    assert files == {f"{p.parent.name}/{p.name}" for p in golden.glob("model_*/checkpoint*.pt")}
    assert not [comparison for comparison in imported if not comparison.excess <= 0]


def test_the_script_passes_and_prints_every_quantity(golden: Path) -> None:
    result = run(golden)
    assert result.returncode == 0, result.stderr
    printed = {line[: line.find("  ")] for line in result.stdout.splitlines()}
    assert {*TOLERANCES} <= printed
    assert " 0 failed" in result.stdout


def test_a_wrong_number_is_found(golden: Path, tmp_path: Path) -> None:
    for name in ("conv_dynamic.json", "conv_dynamic.safetensors"):
        shutil.copy(golden / name, tmp_path / name)
    tensors = load_file(tmp_path / "conv_dynamic.safetensors")
    key = next(key for key in tensors if key.endswith(".y"))
    tensors[key] = tensors[key] + 1e-3
    (tmp_path / "conv_dynamic.safetensors").unlink()
    save_file(tensors, tmp_path / "conv_dynamic.safetensors")
    result = run(tmp_path)
    assert result.returncode == 1
    assert key.removesuffix(".y") in result.stdout
    assert ", 1 failed" in result.stdout


def test_an_empty_folder_is_no_success(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert (result.returncode, result.stdout.splitlines()[-1]) == (1, "nothing was checked")
    assert run(tmp_path / "nowhere").returncode == 3
