"""The table of launches: complete, and rewritten by its script without loss."""

import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from lightconv_mt.errors import ConfigError
from lightconv_mt.ops import triton_table as table

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "tune_kernels.py"
KERNELS = sorted({kernel for kernel, _ in table.UNTUNED})


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_call_has_a_launch(kernel: str) -> None:
    sizes = product(range(1, 256), (1, 16, 64), (2, 4), (0, 1, 512, 513, 8193, 10**7))
    for width, cols, itemsize, positions in sizes:
        launch = table.choose_launch(
            kernel,
            **{"width": width, "cols": cols, "itemsize": itemsize, "positions": positions},
            architecture="sm_90",
        )
        for value in (launch.runs, launch.warps, launch.cols):
            assert value == table.power_of_two(value)
        assert 1 <= launch.taps <= width
        assert launch.warps <= 16


def test_a_wider_kernel_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"up to 255, not 256; set runtime\.kernels=torch"):
        table.choose_launch(
            "lightconv_forward",
            **{"width": 256, "cols": 64, "itemsize": 4, "positions": 9},
            architecture="sm_90",
        )


def test_a_measured_launch_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = table.Tiling(256, 2, 3, 2)
    monkeypatch.setattr(table, "launch_of", table.launch_of.__wrapped__)  # kept nowhere
    monkeypatch.setitem(table.TUNED, ("lightconv_forward", "sm_90", 8, 64, 2), measured)
    chosen = {
        architecture: table.choose_launch(
            "lightconv_forward",
            **{"width": 7, "cols": 64, "itemsize": 2, "positions": 10**6},
            architecture=architecture,
        )
        for architecture in ("sm_90", "gfx942")
    }
    assert chosen["sm_90"] == table.Launch(runs=4, steps=2, taps=3, cols=64, warps=2)
    assert chosen["gfx942"] != chosen["sm_90"]


@pytest.mark.parametrize("kernel", table.UNTUNED_BLOCKS)
def test_blocks_are_as_wide_as_a_row_at_most(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    full = table.UNTUNED_BLOCKS[kernel]
    for elements in (0, 1, 2, 37, 8000, 10**6):
        block = table.choose_block(kernel, elements=elements, architecture="sm_90")
        assert block.elements == table.power_of_two(block.elements) <= full.elements
        assert block.elements == full.elements or elements <= block.elements < 2 * max(elements, 1)
        assert 1 <= block.warps == table.power_of_two(block.warps) <= full.warps
    measured = table.Block(512, 4)
    monkeypatch.setitem(table.TUNED_BLOCKS, (kernel, "sm_90"), measured)
    chosen = {
        architecture: table.choose_block(kernel, elements=10**6, architecture=architecture)
        for architecture in ("sm_90", "gfx942")
    }
    assert chosen == {"sm_90": measured, "gfx942": full}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_tuning_without_a_gpu_changes_nothing() -> None:
    before = Path(table.__file__).read_bytes()
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=True)
    assert "no GPU here" in done.stdout
    assert Path(table.__file__).read_bytes() == before


def test_the_script_writes_entries_that_python_reads(tmp_path: Path) -> None:
    copy = tmp_path / "triton_table.py"
    shutil.copy(table.__file__, copy)
    program = (
        "import tune_kernels as tune; table = tune.table; table.__file__ = sys.argv[1];"
        "key = ('lightconv_step', 'sm_90', 8, 64, 0); table.TUNED[key] = table.Tiling(1, 2, 3, 4);"
        "table.TUNED_BLOCKS['residual', 'sm_90'] = table.Block(64, 2);"
        "tune.write_table(); tune.write_table()"
    )
    command = [sys.executable, "-c", f"import sys; {program}", str(copy)]
    subprocess.run(command, cwd=SCRIPT.parent, check=True)
    read: dict[str, object] = {}
    exec(copy.read_text(), read)
    assert repr(read["TUNED"]) == (
        "{('lightconv_step', 'sm_90', 8, 64, 0): Tiling(tile=1, steps=2, taps=3, warps=4)}"
    )
    assert repr(read["TUNED_BLOCKS"]) == "{('residual', 'sm_90'): Block(elements=64, warps=2)}"
    assert read["UNTUNED"] and read["UNTUNED_BLOCKS"]
