"""One name for every implementation of the convolutions; `auto` is resolved once, and logged."""

import logging
from enum import Enum
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from lightconv_mt.errors import ConfigError
from lightconv_mt.ops.banded import dynamicconv_banded, lightconv_banded
from lightconv_mt.ops.library import NativeUnavailableError, load_library
from lightconv_mt.ops.reference import (
    dynamicconv_reference,
    dynamicconv_step_reference,
    lightconv_reference,
    lightconv_step_reference,
)
from lightconv_mt.ops.register import (
    dynamicconv_kernel,
    dynamicconv_step_kernel,
    lightconv_kernel,
    lightconv_step_kernel,
)

logger = logging.getLogger(__name__)

TRITON = "lightconv_mt.ops.triton_step"  # imports the other modules of kernels


class Backend(Enum):
    """Implementations of `lightconv` and `dynamicconv`; `auto` takes the fastest that runs here.

    `reference` is the definition and `torch` its fastest plain form, both for any device; `native`
    is C++ for CPUs, `triton` for GPUs; `triton` takes no float64, for which `auto` takes `torch`.
    """

    auto = "auto"
    reference = "reference"
    torch = "torch"
    native = "native"
    triton = "triton"


# Behind one registered op; the device of the tensors decides.
COMPILED = (Backend.native, Backend.triton)


def resolve_backend(requested: Backend, *, device: torch.device) -> Backend:
    """Turn `auto` into the backend for a device and log the choice; check any other request.

    Raises:
        ConfigError: when the backend asked for cannot run here.
    """
    if requested is Backend.auto:
        chosen, why = _fastest(device.type)
        logger.info("convolution kernels: %s%s", chosen.name, f" ({why})" if why else "")
        return chosen
    _check_device(requested, device)
    try:
        if requested is Backend.native:
            load_library()
        if requested is Backend.triton:
            import_module(TRITON)
    except (NativeUnavailableError, ImportError) as error:
        raise ConfigError(
            f"runtime.kernels={requested.name} cannot run: {error}; set runtime.kernels=auto"
        ) from error
    return requested


@cache
def _fastest(device_type: str) -> tuple[Backend, str]:
    """The backend that `auto` stands for, and why it is no faster one."""
    try:
        if device_type == "cpu":
            load_library()
            return Backend.native, ""
        if device_type == "cuda":
            import_module(TRITON)
            return Backend.triton, ""
    except NativeUnavailableError as error:
        return Backend.torch, f"not native: {error}"
    except ImportError as error:
        return Backend.torch, f"not triton: {error}"
    return Backend.torch, f"there are no kernels for {device_type}"


def _check_device(backend: Backend, device: torch.device) -> None:
    problem = ""
    if backend is Backend.native and device.type != "cpu":
        problem = f"native runs on CPUs, not on {device.type}; set runtime.kernels=auto"
    # ROCm's devices are called cuda too.
    if backend is Backend.triton and device.type != "cuda":
        problem = (
            f"triton runs on GPUs, not on {device.type}; "
            f"set runtime.device=cuda where there is one, else runtime.kernels=auto"
        )
    if problem:
        raise ConfigError(f"runtime.kernels={problem}")


def choose(backend: Backend, *tensors: Tensor) -> Backend:
    """The backend of one call on these tensors.

    Raises:
        ConfigError: when the backend asked for is not for their device.
    """
    device = tensors[0].device
    if backend is not Backend.auto:
        _check_device(backend, device)
        return backend
    chosen, _ = _fastest(device.type)
    if chosen is Backend.triton and any(tensor.dtype is torch.float64 for tensor in tensors):
        return Backend.torch
    return chosen


def lightconv(
    x: Tensor,
    weight: Tensor,
    *,
    padding_left: int,
    normalize: bool = True,
    dropout: float = 0.0,
    seed: int = 0,
    backend: Backend = Backend.auto,
) -> Tensor:
    """Lightweight convolution; arguments and result as `ops.reference.lightconv_reference`.

    Args:
        x: (B, T, C) float.
        weight: (H, K) float, before the softmax.
        padding_left: 0..K-1.
        normalize: softmax over the K taps.
        dropout: weight dropout probability.
        seed: of the dropout mask.
        backend: which implementation; all agree.

    Returns:
        (B, T, C) in x's dtype.
    """
    _check(x, heads=weight.shape[0], width=weight.shape[1], padding_left=padding_left)
    backend = choose(backend, x, weight)
    if backend in COMPILED:
        return lightconv_kernel(x, weight, padding_left, normalize, dropout, seed)
    function = lightconv_reference if backend is Backend.reference else lightconv_banded
    return function(
        x, weight, padding_left=padding_left, normalize=normalize, dropout=dropout, seed=seed
    )


def dynamicconv(
    x: Tensor,
    weight: Tensor,
    *,
    padding_left: int,
    normalize: bool = True,
    dropout: float = 0.0,
    seed: int = 0,
    backend: Backend = Backend.auto,
) -> Tensor:
    """Dynamic convolution; weight (B, T, H, K) before the softmax, the rest as `lightconv`."""
    if weight.shape[:2] != x.shape[:2]:
        raise ValueError(
            f"dynamicconv: weight is for {tuple(weight.shape[:2])} positions, "
            f"x has {tuple(x.shape[:2])}"
        )
    _check(x, heads=weight.shape[2], width=weight.shape[3], padding_left=padding_left)
    backend = choose(backend, x, weight)
    options = (padding_left, normalize, dropout, seed)
    if backend is Backend.triton:
        return dynamicconv_kernel(x, weight, *options)
    if backend is Backend.native:
        common = torch.promote_types(x.dtype, weight.dtype)
        return dynamicconv_kernel(x.to(common), weight.to(common), *options).to(x.dtype)
    function = dynamicconv_reference if backend is Backend.reference else dynamicconv_banded
    return function(
        x, weight, padding_left=padding_left, normalize=normalize, dropout=dropout, seed=seed
    )


def lightconv_step(
    x: Tensor,
    ring: Tensor,
    position: Tensor,
    weight: Tensor,
    *,
    normalize: bool = True,
    backend: Backend = Backend.auto,
) -> Tensor:
    """Causal lightweight convolution of T new positions; see `reference.lightconv_step_reference`.

    Args:
        x: (N, T, C) float.
        ring: (N, K - 1, C) in x's dtype, contiguous; the last K - 1 inputs of each row, that of
            position p in slot p % (K - 1), zeros before the sentence. Overwritten.
        position: (N,) int64, positions of each row read before this call; not changed.
        weight: (H, K) float, before the softmax.
        normalize: softmax over the K taps.
        backend: which implementation; all agree, `torch` is the reference.

    Returns:
        (N, T, C) in x's dtype.

    Raises:
        RuntimeError: when a gradient is asked for.
    """
    _check_step(x, ring, position, weight)
    backend = choose(backend, x, weight)
    function = lightconv_step_kernel if backend in COMPILED else lightconv_step_reference
    return function(x, ring, position, weight, normalize=normalize)


def dynamicconv_step(
    x: Tensor,
    ring: Tensor,
    position: Tensor,
    weight: Tensor,
    *,
    normalize: bool = True,
    backend: Backend = Backend.auto,
) -> Tensor:
    """One-step dynamic convolution; weight (N, T, H, K) before the softmax, as `lightconv_step`."""
    if weight.shape[:2] != x.shape[:2]:
        raise ValueError(
            f"dynamicconv_step: weight is for {tuple(weight.shape[:2])} positions, "
            f"x has {tuple(x.shape[:2])}"
        )
    _check_step(x, ring, position, weight)
    backend = choose(backend, x, weight)
    function = dynamicconv_step_kernel if backend in COMPILED else dynamicconv_step_reference
    return function(x, ring, position, weight, normalize=normalize)


def _check_step(x: Tensor, ring: Tensor, position: Tensor, weight: Tensor) -> None:
    rows, _, channels = x.shape
    heads, width = weight.shape[-2:]
    _check(x, heads=heads, width=width, padding_left=width - 1)
    if ring.shape != (rows, width - 1, channels) or ring.dtype is not x.dtype:
        raise ValueError(
            f"the ring is {tuple(ring.shape)} {ring.dtype} but must be "
            f"{(rows, width - 1, channels)} {x.dtype}"
        )
    if not ring.is_contiguous():
        raise ValueError("the ring must be contiguous")
    if position.shape != (rows,) or position.dtype is not torch.int64:
        raise ValueError(
            f"positions are {tuple(position.shape)} {position.dtype} but must be "
            f"{(rows,)} torch.int64"
        )
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or ring.requires_grad):
        raise RuntimeError(
            "a step overwrites its ring and has no gradient; call it under torch.no_grad()"
        )


def _check(x: Tensor, *, heads: int, width: int, padding_left: int) -> None:
    if x.shape[-1] % heads:
        raise ValueError(
            f"{x.shape[-1]} channels cannot be shared by {heads} heads; "
            f"give a divisor of the channels"
        )
    if not 0 <= padding_left < width:
        raise ValueError(
            f"padding_left is {padding_left} "
            f"but must lie in 0..{width - 1} for kernel width {width}"
        )
