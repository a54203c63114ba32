"""The part of `make bench-gpu` that has a form for CPUs, at toy size: every case gives its rows."""

import pytest
import torch

import bench_gpu
import bench_gpu_training
from lightconv_mt.ops import Backend

SIZES = bench_gpu_training.Sizes(
    rows=8,
    vocabularies=(11, 64),
    residual=(2, 3, 4),
    models=(("toy", 16, 16, 2, 1),),
    batch=(3, 4, 5),
    vocabulary=20,
)


def test_every_case_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    # Compiling has its own test and takes half a minute.
    monkeypatch.setattr(
        bench_gpu_training, "compile_layers", lambda model, first_step: first_step()
    )
    device = torch.device("cpu")
    rows = list(bench_gpu_training.measurements(device, Backend.torch, SIZES, rounds=1))
    found = {(row["case"], row["dtype"], row["candidate"]) for row in rows}
    assert {case for case, _, _ in found} == {
        *("cross-entropy", "residual and dropout", "training step"),
    }
    assert ("training step", "bfloat16", "compiled") in found
    assert len([row for row in rows if row["case"] == "training step"]) == 2 * 3
    assert all(row["seconds"] > 0 for row in rows)
    steps = [row for row in rows if row["tokens_per_second"]]
    assert {row["detail"].split(",")[0] for row in steps} == {
        *("toy lightconv", "toy dynamicconv", "toy attention"),
    }
    lines = bench_gpu.table(rows)
    assert len(lines) == len(rows) + 2 and len({line.count(" | ") for line in lines}) == 1
