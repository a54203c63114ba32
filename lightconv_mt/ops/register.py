"""Registers compiled kernels with torch: shapes for tracing, gradients, one op for all.

C++ serves tensors on CPUs, Triton those on GPUs; what is on which device decides.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from lightconv_mt.ops import native

_OPTIONS = "int padding_left, bool normalize, float dropout, SymInt seed"
_STEP = "Tensor x, Tensor(a!) ring, Tensor position, Tensor weight, *, bool normalize"


class KernelOp:
    """An op of this library: torch's for what traces it, shorter ways to its functions otherwise.

    Torch's way from Python through an op and its registered gradient back to Python takes several
    times as long as the launch of a kernel. Called with plain tensors, an op is one function of
    torch's autograd, or its own function where no gradient is wanted.

    Attributes:
        op: torch's, with shapes for tracing and, where it has one, its gradient.
    """

    def __init__(self, name: str, op: Any, functions: dict[str, Callable[..., Any]]) -> None:
        """Keep the functions by device type."""
        self.op, self._name, self._functions = op, name, functions
        self._function: type[torch.autograd.Function] | None = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Run, by whichever way serves the arguments; tensors come by position."""
        if torch.compiler.is_compiling():
            return self.op(*arguments, **options)
        tensors = [each for each in arguments if isinstance(each, Tensor)]
        device = tensors[0].device.type
        if device not in self._functions or not all(
            type(each) in _PLAIN and each.device.type == device for each in tensors
        ):
            return self.op(*arguments, **options)
        if not torch.is_grad_enabled() or not any(each.requires_grad for each in tensors):
            return self._functions[device](*arguments, **options)
        return (self._function.apply if self._function else self.op)(*arguments, **options)

    def differentiate(self, remember: Callable[..., None], backward: Callable[..., Any]) -> None:
        """Give it a gradient.

        Args:
            remember: called with a context, the op's inputs and its output.
            backward: called with the context and the output's gradients; returns the inputs'.
        """
        torch.library.register_autograd(
            f"lightconv_mt::{self._name}", backward, setup_context=remember
        )
        functions = self._functions

        def forward(ctx: Any, *inputs: Any) -> Any:
            device = next(each.device.type for each in inputs if isinstance(each, Tensor))
            output = functions[device](*inputs)
            remember(ctx, inputs, output)
            return output

        members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        self._function = type(self._name, (torch.autograd.Function,), members)


# Subclasses may hold no data of their own.
_PLAIN = (Tensor, nn.Parameter)


def triton_function(module: str, name: str) -> Callable[..., Any]:
    """A function of ops/triton_*.py, imported at the first call: most machines have no triton."""

    @cache
    def found() -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(
            import_module(f"lightconv_mt.ops.triton_{module}"), name
        )
        return function

    return lambda *tensors, **options: found()(*tensors, **options)


def _by_position(function: Callable[..., Any], tensors: int) -> Callable[..., Any]:
    """Take the options behind `tensors` tensors in the order in which the ops have them."""

    def positional(*arguments: Any) -> Any:
        padding_left, normalize, dropout, seed = arguments[tensors:]
        return function(
            *arguments[:tensors],
            padding_left=padding_left,
            normalize=normalize,
            dropout=dropout,
            seed=seed,
        )

    return positional


def register_op(
    name: str,
    signature: str,
    *,
    cpu: Callable[..., Any],
    cuda: Callable[..., Any] | None,
    shapes: Callable[..., Any],
) -> KernelOp:
    """Define an op, with its function for either device and its shapes alone for tracing."""
    qualified = f"lightconv_mt::{name}"
    functions = {"cpu": cpu, "cuda": cuda}
    torch.library.define(qualified, signature)
    found = {device: function for device, function in functions.items() if function is not None}
    for device, function in found.items():
        torch.library.impl(qualified, device, function)
    torch.library.register_fake(qualified, shapes)
    return KernelOp(name, getattr(torch.ops.lightconv_mt, name).default, found)


def refuse_second_derivative(op: str) -> None:
    """To be called where an op is differentiated: nobody would notice that the next one is zero.

    Raises:
        RuntimeError: when that derivative shall be differentiated (`create_graph=True`).
    """
    if torch.is_grad_enabled():
        raise RuntimeError(f"{op} has no second derivative; take Backend.reference, which has")


def _shape(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x.new_empty(x.shape)


def _gradient_shapes(grad_y: Tensor, x: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, *ctx.options = inputs
    ctx.save_for_backward(x, weight)


def _register_convolution(
    kind: str, forward: Callable[..., Any], backward: Callable[..., Any]
) -> tuple[KernelOp, KernelOp]:
    """Define a convolution and its gradients, given their functions for CPUs."""
    op = register_op(
        kind,
        f"(Tensor x, Tensor weight, {_OPTIONS}) -> Tensor",
        cpu=_by_position(forward, 2),
        cuda=_by_position(triton_function(kind, f"{kind}_triton"), 2),
        shapes=_shape,
    )
    gradients = register_op(
        f"{kind}_backward",
        f"(Tensor grad_y, Tensor x, Tensor weight, {_OPTIONS}) -> (Tensor, Tensor)",
        cpu=_by_position(backward, 3),
        cuda=_by_position(triton_function(kind, f"{kind}_triton_backward"), 3),
        shapes=_gradient_shapes,
    )

    def differentiate(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(kind)
        return *gradients(grad_y, *ctx.saved_tensors, *ctx.options), *[None] * len(ctx.options)

    op.differentiate(_remember, differentiate)
    return op, gradients


def _register_step(kind: str, function: Callable[..., Any]) -> KernelOp:
    """Define the one-step form of a convolution, given its function for CPUs."""
    return register_op(
        f"{kind}_step",
        f"({_STEP}) -> Tensor",
        cpu=function,
        cuda=triton_function("step", f"{kind}_step_triton"),
        shapes=_shape,
    )


lightconv_kernel, lightconv_backward_kernel = _register_convolution(
    "lightconv", native.lightconv_native, native.lightconv_native_backward
)
dynamicconv_kernel, dynamicconv_backward_kernel = _register_convolution(
    "dynamicconv", native.dynamicconv_native, native.dynamicconv_native_backward
)
lightconv_step_kernel = _register_step("lightconv", native.lightconv_step_native)
dynamicconv_step_kernel = _register_step("dynamicconv", native.dynamicconv_step_native)
