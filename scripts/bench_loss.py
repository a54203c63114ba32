"""Time the cross-entropy kernel beside plain torch: loss and gradient of a chunk of logits."""

import argparse
import statistics
import time
from datetime import date

import torch

from arguments import positive
from lightconv_mt.ops.cross_entropy import Smoothing, cross_entropy_
from lightconv_mt.ops.dispatch import Backend
from lightconv_mt.train.memory import keep_freed_memory


def main() -> None:
    """Check that both agree, time them in turn, print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=positive, default=512)
    parser.add_argument("--vocabulary", type=positive, default=8000)
    parser.add_argument("--rounds", type=positive, default=20)
    parser.add_argument("--threads", type=positive, default=1)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(1)
    target = torch.randint(arguments.vocabulary, (arguments.rows // 2,)).repeat(2)
    print(
        f"{date.today()}  torch {torch.__version__}  {arguments.threads} threads  "
        f"{arguments.rows} x {arguments.vocabulary} logits"
    )
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.randn(arguments.rows, arguments.vocabulary).to(dtype)
        for agreement in (0.0, 3.0):
            smoothing = Smoothing(label_smoothing=0.1, agreement=agreement)
            times: dict[Backend, list[float]] = {Backend.native: [], Backend.torch: []}
            slopes = {}
            for _ in range(arguments.rounds):
                for backend, taken in times.items():
                    slopes[backend] = logits.clone()
                    start = time.perf_counter()
                    cross_entropy_(
                        slopes[backend], target, smoothing, gradient=True, backend=backend
                    )
                    taken.append(time.perf_counter() - start)
            torch.testing.assert_close(*slopes.values(), rtol=2e-2, atol=2e-2)
            native, plain = (1e3 * statistics.median(taken) for taken in times.values())
            print(
                f"{str(dtype)[6:]:<9} R-Drop {'on ' if agreement else 'off'}  "
                f"native {native:6.2f} ms  torch {plain:6.2f} ms  {plain / native:5.1f}x"
            )


if __name__ == "__main__":
    main()
