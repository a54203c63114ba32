"""Registers compiled kernels with torch: shapes for tracing, gradients, one op for all.

C++ serves tensors on CPUs, Triton those on GPUs; what is on which device decides. Ops are defined
without `torch.library.custom_op`, whose wrapper costs 30 us a call: more than some kernels take.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from lightconv_mt.ops import native

_OPTIONS = "int padding_left, bool normalize, float dropout, SymInt seed"
_STEP = "Tensor x, Tensor(a!) ring, Tensor position, Tensor weight, *, bool normalize"


def triton_function(module: str, name: str) -> Callable[..., Any]:
    """A function of ops/triton_*.py, imported at the first call: most machines have no triton."""

    def function(*tensors: Tensor, **options: Any) -> Any:
        found = getattr(import_module(f"lightconv_mt.ops.triton_{module}"), name)
        return found(*tensors, **options)

    return function


def _by_position(function: Callable[..., Any], tensors: int) -> Callable[..., Any]:
    """Take the options behind `tensors` tensors in the order in which the ops have them."""

    def positional(*arguments: Any) -> Any:
        names = ("padding_left", "normalize", "dropout", "seed")
        options = dict(zip(names, arguments[tensors:], strict=True))
        return function(*arguments[:tensors], **options)

    return positional


def register_op(
    name: str,
    signature: str,
    *,
    cpu: Callable[..., Any],
    cuda: Callable[..., Any] | None,
    shapes: Callable[..., Any],
) -> Any:
    """Define an op, with its function for either device and its shapes alone for tracing."""
    qualified = f"lightconv_mt::{name}"
    torch.library.define(qualified, signature)
    torch.library.impl(qualified, "cpu", cpu)
    if cuda is not None:
        torch.library.impl(qualified, "cuda", cuda)
    torch.library.register_fake(qualified, shapes)
    return getattr(torch.ops.lightconv_mt, name).default


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
) -> tuple[Any, Any]:
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

    torch.library.register_autograd(f"lightconv_mt::{kind}", differentiate, setup_context=_remember)
    return op, gradients


def _register_step(kind: str, function: Callable[..., Any]) -> Any:
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
