"""The compile gate sees a spill, and what compiles but cannot be read does not pass."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import TypeVar

import pytest

pytest.importorskip("triton")

from kernel_gate.aot import VOCABULARIES, WIDTHS, Compiled, Job, compile_job, jobs, passes
from kernel_gate.calls import Call
from kernel_gate.resources import Resources, amdgcn_resources
from kernel_gate.targets import TARGETS

Found = TypeVar("Found")

CALL = Call(kind="lightconv", direction="forward", dtype="bf16", width=3)
FINE = Compiled(
    kernel="k",
    job=Job(target="sm_90", call=CALL),
    num_warps=4,
    resources=Resources(registers=64, shared=0, stack=0),
)


def compiled(
    job: Job, monkeypatch: pytest.MonkeyPatch, by: Callable[[Job], list[Found]]
) -> list[Found]:
    """In a process of its own, which does not interpret."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(by, job).result()


def assembly_with_and_without_fusion_by_default(job: Job) -> list[list[str]]:
    """What the job's kernels become under either default of Triton."""
    from triton import knobs

    texts = []
    for default in (True, False):
        knobs.language.default_fp_fusion = default
        builds = [launch.build(TARGETS[job.target]) for launch in job.launches()]
        texts.append([build.asm["ptx"] for build in builds])
    return texts


@pytest.mark.parametrize("kind", ["lightconv", "dynamicconv"])
def test_multiply_and_add_are_fused_whatever_the_default(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(target="sm_90", call=replace(CALL, kind=kind))
    fused, same = compiled(job, monkeypatch, assembly_with_and_without_fusion_by_default)
    assert fused == same
    assert all("fma.rn.f32" in text for text in fused)


@pytest.mark.parametrize("target", ["sm_80", "gfx942"])
def test_the_control_spills_only_without_registers(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (few,) = compiled(Job(target=target, must_spill=True), monkeypatch, compile_job)
    (many,) = compiled(Job(target=target), monkeypatch, compile_job)
    assert few.resources and few.resources.stack > 100 and not few.complaint
    assert many.resources and many.resources.stack == 0 and not many.complaint
    assert passes([few, many, FINE])
    # The same code where no spill is allowed, and a reader that sees none where there must be one.
    assert "spills" in replace(few, job=FINE.job).complaint
    assert "no spill seen" in replace(many, job=few.job).complaint
    assert not passes([replace(many, job=few.job), FINE])


def test_controls_alone_are_no_success() -> None:
    assert passes([FINE])
    assert not passes([])
    assert not passes([replace(FINE, job=Job(target="sm_90"))])


def test_a_kernel_that_does_not_compile_is_a_complaint() -> None:
    (broken,) = compile_job(Job(target="sm_90", call=replace(CALL, kind="nothing")))
    assert "No module named" in broken.complaint
    assert not passes([FINE, broken])


def test_amd_registers_and_scratch_are_read() -> None:
    text = ".vgpr_count: 324\n.vgpr_spill_count: 0\n.sgpr_spill_count: 52\n"
    text += ".group_segment_fixed_size: 512\n.private_segment_fixed_size: "
    assert amdgcn_resources(text + "0", shared=512) == Resources(
        registers=324, shared=512, stack=0, spilled_scalars=52
    )
    assert amdgcn_resources(text + "16", shared=512).stack == 16


@pytest.mark.parametrize(
    ("target", "registers", "shared", "num_warps", "expected"),
    [
        ("sm_90", 32, 0, 4, 1.0),
        ("sm_90", 64, 0, 8, 0.5),
        ("sm_90", 65, 0, 4, 28 / 64),  # 72 registers a lane: 7 warps from each file
        ("sm_90", 255, 0, 8, 8 / 64),
        ("sm_80", 32, 81 * 1024, 4, 8 / 64),  # with its own KiB twice in 164
        ("sm_80", 16, 0, 1, 32 / 64),  # 32 blocks at most
        ("gfx942", 128, 0, 4, 16 / 32),
        ("gfx942", 324, 0, 4, 4 / 32),
    ],
)
def test_occupancy(
    target: str, registers: int, shared: int, num_warps: int, expected: float
) -> None:
    resources = Resources(registers=registers, shared=shared, stack=0)
    assert TARGETS[target].occupancy(resources, num_warps=num_warps) == expected


def test_every_kernel_type_width_and_gpu_is_compiled() -> None:
    full = jobs(reduced=False)
    convolutions, losses, residuals = 2 * 3 * len(WIDTHS), 2 * len(VOCABULARIES), 2
    kernels = 3 * (convolutions + losses + residuals)
    assert len(full) == len(set(full)) == 4 * (2 + kernels)
    assert {job.must_spill for job in full[:2]} == {True, False}
    reduced = jobs(reduced=True)
    assert {job.target for job in reduced} == {"sm_90"} and set(reduced) < set(full)
