"""Random calls of a backend, forward and backward, against a loop in float64 and the reference."""

import argparse
import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from kernel_gate import loops
from kernel_gate.cases import TYPES, Case, random_case, tensors
from kernel_gate.report import Errors
from kernel_gate.rows import (
    compare_losses,
    compare_residuals,
    random_loss_case,
    random_residual_case,
)
from kernel_gate.steps import compare_steps, random_step_case
from lightconv_mt import ops
from lightconv_mt.errors import LcmtError
from lightconv_mt.ops import Backend, resolve_backend

# Module and name of what gives the kernels' outputs their memory.
ALLOCATORS = {
    "native": [("native", "empty_like")],
    "triton": [
        (f"triton_{name}", "empty")
        for name in ("lightconv", "dynamicconv", "step", "cross_entropy", "residual")
    ],
}
QUANTITIES = ("y", "grad_x", "grad_weight")


def main() -> int:
    """Print the worst error of each quantity; 0 when something was compared and all of it holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reduced", action="store_true", help="100 calls, not 2000")
    parser.add_argument("--calls", type=int)
    parser.add_argument("--seed", type=int, default=1, help="of the random calls")
    parser.add_argument(
        "--backend", choices=[backend.value for backend in Backend], default="native"
    )
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    calls = arguments.calls or (100 if arguments.reduced else 2000)
    try:
        backend = resolve_backend(Backend(arguments.backend), device=torch.device(arguments.device))
    except LcmtError as error:
        print(f"numerics: {error}", file=sys.stderr)
        return error.exit_code
    types = TYPES if backend.value != "triton" else TYPES[:-1]  # no float64
    rng, errors = random.Random(arguments.seed), Errors()
    with outputs_hold_nan(backend):
        for _ in range(calls):
            compare(random_case(rng, types), errors, backend=backend, device=arguments.device)
        for _ in range(calls // 4):
            case = random_step_case(rng, types)
            compare_steps(case, rng, errors, backend=backend, device=arguments.device)
        for _ in range(calls // 4):
            loss, join = random_loss_case(rng, types), random_residual_case(rng, types)
            compare_losses(loss, errors, backend=backend, device=arguments.device)
            compare_residuals(join, errors, backend=backend, device=arguments.device)
    print(
        f"{calls} random calls of {backend.value} on {arguments.device}, {calls // 4} each of its "
        f"one-step functions, cross-entropy and residual dropout, seed {arguments.seed}"
    )
    return not errors.print()


def compare(case: Case, errors: Errors, *, backend: Backend, device: str = "cpu") -> None:
    """Add the errors of one call, forward and backward."""
    x, weight, grad_y = tensors(case, device=device)
    exact, sums = loops.convolve(
        *(each.double().cpu().numpy() for each in (x, weight, grad_y)), **case.options
    )
    ours = call(case, x, weight, grad_y, backend=backend)
    wide = call(case, x.double(), weight.double(), grad_y.double(), backend=Backend.reference)
    for name, found, reference in zip(QUANTITIES, ours, wide, strict=True):
        scale, loop = (torch.from_numpy(getattr(each, name)) for each in (sums, exact))
        for other, expected in (("loop", loop), ("reference", reference.cpu())):
            errors.compare(
                *(case.kind, name, other), found=found, expected=expected, sums=scale, case=case
            )
    if case.padding_left == case.width - 1 and case.time > 1:
        real = case.time - case.time // 3 - 1
        x[:, real:] = torch.nan
        y = call(case, x, weight, grad_y, backend=backend)[0]
        same = torch.equal(y[:, :real], ours[0][:, :real])
        errors.require(case.kind, "y", "itself, NaN later", dtype=y.dtype, holds=same, case=case)


def call(
    case: Case, x: Tensor, weight: Tensor, grad_y: Tensor, *, backend: Backend
) -> tuple[Tensor, Tensor, Tensor]:
    """Output and the gradients of x and weight through `lightconv_mt.ops`."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = getattr(ops, case.kind)(x, weight, backend=backend, **case.options)
    return y.detach(), *torch.autograd.grad(y, (x, weight), grad_y)


@contextmanager
def outputs_hold_nan(backend: Backend) -> Iterator[None]:
    """An element that a kernel forgets to write is NaN."""
    with ExitStack() as stack:
        for name, function in ALLOCATORS.get(backend.value, ()):
            module = import_module(f"lightconv_mt.ops.{name}")
            allocate = getattr(module, function)

            def filled(*shape: Any, allocate: Any = allocate, **options: Any) -> Tensor:
                output: Tensor = allocate(*shape, **options).fill_(torch.nan)
                return output

            stack.enter_context(patch.object(module, function, filled))
        yield


if __name__ == "__main__":
    sys.exit(main())
