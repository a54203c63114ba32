"""The clock of GPU benchmarks, on a pretended GPU that works behind the host's back."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import bench_gpu
import gpu_clock
from gpu_clock import LONGEST, SLEEP_CYCLES, WARM_UP, Clock, timed_apart
from lightconv_mt import ops

HOST_STEP, CYCLE = 1e-3, 1e-9


class Gpu:
    """Takes what is queued one by one; the host needs a millisecond to queue a call."""

    def __init__(self) -> None:
        self.host = self.free = 0.0
        self.slept: list[int] = []

    def work(self, seconds: float) -> None:
        self.host += HOST_STEP
        self.free = max(self.free, self.host) + seconds

    def sleep(self, cycles: int) -> None:
        self.slept.append(cycles)
        self.free = max(self.free, self.host) + cycles * CYCLE

    def synchronize(self) -> None:
        self.host = max(self.host, self.free)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    gpu = Gpu()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = max(gpu.free, gpu.host)

        def query(self) -> bool:
            return gpu.host >= self.at

        def elapsed_time(self, later: "Event") -> float:
            return 1e3 * (later.at - self.at)

    for name, value in {
        "Event": Event,
        "_sleep": gpu.sleep,
        "synchronize": gpu.synchronize,
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 10,
        "max_memory_allocated": lambda: 17,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(gpu_clock.time, "perf_counter", lambda: gpu.host)
    yield gpu


def test_a_kernel_shorter_than_its_launch_is_timed_alone(gpu: Gpu) -> None:
    clocks = Clock(), Clock()
    for _ in range(WARM_UP + 2):
        timed_apart([lambda: gpu.work(5e-6), lambda: gpu.work(7e-6)], clocks)
    for clock, seconds in zip(clocks, (5e-6, 7e-6), strict=True):
        assert clock.seconds == pytest.approx(seconds)
        assert clock.host_seconds == pytest.approx(HOST_STEP)
    assert set(gpu.slept) == {SLEEP_CYCLES}


def test_the_gpu_sleeps_until_all_is_queued(gpu: Gpu) -> None:
    """Sixty calls take the host six times as long as the first sleep."""
    clock = Clock()
    for _ in range(WARM_UP + 1):
        timed_apart([lambda: [gpu.work(1e-6) for _ in range(60)]], [clock])
    assert clock.seconds == pytest.approx(60e-6)
    assert gpu.slept == [SLEEP_CYCLES * 2**power for power in (0, 1, 2, 3, 3, 3, 3)]


def test_what_waits_for_the_gpu_is_timed_all_the_same(gpu: Gpu) -> None:
    clock = Clock()

    def waits() -> None:
        gpu.work(2e-6)
        gpu.synchronize()

    timed_apart([waits], [clock])
    assert len(clock.device) == len(clock.host) == 1
    assert LONGEST < gpu.slept[-1] <= 2 * LONGEST


def test_the_first_rounds_do_not_count() -> None:
    clock = Clock(device=[9.0] * WARM_UP + [1.0, 2.0, 3.0], host=[9.0] * WARM_UP + [4.0])
    assert (clock.seconds, clock.host_seconds) == (2.0, 4.0)


def test_both_directions_of_every_candidate_that_fits_are_measured(gpu: Gpu) -> None:
    def convolution(x: Tensor, weight: Tensor) -> Tensor:
        gpu.work(3e-6)
        return ops.lightconv(x, weight, padding_left=1, backend=ops.Backend.torch)

    def too_large(x: Tensor, weight: Tensor) -> Tensor:
        raise torch.cuda.OutOfMemoryError

    x, grad_y = torch.randn(2, 2, 5, 8)
    weight = torch.randn(2, 3)
    found = bench_gpu.measure(
        {"ours": convolution, "large": too_large},
        *(x.requires_grad_(), weight.requires_grad_(), grad_y),
        rounds=1,
    )
    assert set(found) == {("ours", "forward"), ("ours", "backward")}
    assert found["ours", "forward"]["seconds"] == pytest.approx(3e-6)
    assert found["ours", "backward"]["peak_bytes"] == 7
