"""What calls take on a GPU and on the host that queues them, apart from each other."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

# The GPU sleeps so long while the host queues calls; twice as long where that was too short.
SLEEP_CYCLES, LONGEST = 10**7, 10**8
WARM_UP = 3


@dataclass
class Clock:
    """Times of one call, a value a round, and how long the GPU had to sleep for them."""

    device: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)
    cycles: int = SLEEP_CYCLES

    @property
    def seconds(self) -> float:
        """Median of the rounds after warming up; on the GPU, where nothing waits for the host."""
        return statistics.median(self.device[WARM_UP:])

    @property
    def host_seconds(self) -> float:
        """Likewise, until the call returns, its kernels only queued."""
        return statistics.median(self.host[WARM_UP:])


def timed_apart(calls: Sequence[Callable[[], object]], clocks: Sequence[Clock]) -> None:
    """Make calls once, one behind the other, and add what each took to its clock.

    Small kernels end before the host has queued the next, so that events around them tell the
    host's time. Here the GPU is kept waiting until all are queued.
    """
    while True:
        torch.cuda.synchronize()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(len(calls) + 1)]
        torch.cuda._sleep(clocks[0].cycles)
        events[0].record()
        returned = [time.perf_counter()]
        for call, event in zip(calls, events[1:], strict=True):
            call()
            event.record()
            returned.append(time.perf_counter())
        # What waits for the GPU, or fills its queue of kernels, never gets ahead.
        ahead = not events[0].query() or clocks[0].cycles > LONGEST
        torch.cuda.synchronize()
        if ahead:
            break
        clocks[0].cycles *= 2
    for place, clock in enumerate(clocks):
        clock.device.append(events[place].elapsed_time(events[place + 1]) / 1e3)
        clock.host.append(returned[place + 1] - returned[place])
