"""Registers compiled kernels with torch: shapes for tracing, gradients, one op for all.

C++ serves tensors on CPUs, Triton those on GPUs; what is on which device decides.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from lightconv_mt.ops import native


@torch.library.custom_op("lightconv_mt::lightconv", mutates_args=(), device_types="cpu")
def lightconv_kernel(
    x: Tensor, weight: Tensor, padding_left: int, normalize: bool, dropout: float, seed: int
) -> Tensor:
    """See `ops.lightconv`."""
    return native.lightconv_native(
        x, weight, padding_left=padding_left, normalize=normalize, dropout=dropout, seed=seed
    )


@torch.library.custom_op("lightconv_mt::lightconv_backward", mutates_args=(), device_types="cpu")
def lightconv_backward_kernel(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    padding_left: int,
    normalize: bool,
    dropout: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Gradients for x and weight."""
    return native.lightconv_native_backward(
        grad_y,
        x,
        weight,
        padding_left=padding_left,
        normalize=normalize,
        dropout=dropout,
        seed=seed,
    )


@torch.library.custom_op("lightconv_mt::dynamicconv", mutates_args=(), device_types="cpu")
def dynamicconv_kernel(
    x: Tensor, weight: Tensor, padding_left: int, normalize: bool, dropout: float, seed: int
) -> Tensor:
    """See `ops.dynamicconv`."""
    return native.dynamicconv_native(
        x, weight, padding_left=padding_left, normalize=normalize, dropout=dropout, seed=seed
    )


@torch.library.custom_op("lightconv_mt::dynamicconv_backward", mutates_args=(), device_types="cpu")
def dynamicconv_backward_kernel(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    padding_left: int,
    normalize: bool,
    dropout: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Gradients for x and weight."""
    return native.dynamicconv_native_backward(
        grad_y,
        x,
        weight,
        padding_left=padding_left,
        normalize=normalize,
        dropout=dropout,
        seed=seed,
    )


def _triton(module: str, name: str) -> Callable[..., Any]:
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


def _shape(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


def _gradient_shapes(grad_y: Tensor, x: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, *ctx.options = inputs
    ctx.save_for_backward(x, weight)


for _kind, _forward, _backward in (
    ("lightconv", lightconv_kernel, lightconv_backward_kernel),
    ("dynamicconv", dynamicconv_kernel, dynamicconv_backward_kernel),
):

    def _differentiate(
        ctx: Any, grad_y: Tensor, backward: Any = _backward
    ) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return *backward(grad_y, x, weight, *ctx.options), *[None] * len(ctx.options)

    _forward.register_fake(_shape)
    _backward.register_fake(_gradient_shapes)
    _forward.register_kernel("cuda")(_by_position(_triton(_kind, f"{_kind}_triton"), 2))
    _backward.register_kernel("cuda")(_by_position(_triton(_kind, f"{_kind}_triton_backward"), 3))
    _forward.register_autograd(_differentiate, setup_context=_remember)


def _step_shape(x: Tensor, *_: Any, normalize: bool) -> Tensor:
    return x.new_empty(x.shape)


# Defined without `custom_op`, whose wrapper costs 30 us a call: ten times a step of one row.
for _name, _step in (
    ("lightconv_step", native.lightconv_step_native),
    ("dynamicconv_step", native.dynamicconv_step_native),
):
    torch.library.define(
        f"lightconv_mt::{_name}",
        "(Tensor x, Tensor(a!) ring, Tensor position, Tensor weight, *, bool normalize) -> Tensor",
    )
    torch.library.impl(f"lightconv_mt::{_name}", "cpu", _step)
    torch.library.impl(f"lightconv_mt::{_name}", "cuda", _triton("step", f"{_name}_triton"))
    torch.library.register_fake(f"lightconv_mt::{_name}", _step_shape)

lightconv_step_kernel = torch.ops.lightconv_mt.lightconv_step.default
dynamicconv_step_kernel = torch.ops.lightconv_mt.dynamicconv_step.default
