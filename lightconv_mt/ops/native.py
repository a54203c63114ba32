"""The convolutions in C++ for CPUs."""

import struct

import torch
from torch import Tensor

from lightconv_mt.ops.library import load_library

KERNEL_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}

# `Call` and `StepCall` of csrc/, packed here: a ctypes.Structure costs more than a small kernel.
_CALL = struct.Struct("=6Q10qQd3q")
_STEP_CALL = struct.Struct("=5Q12q")


def lightconv_native(
    x: Tensor,
    weight: Tensor,
    *,
    padding_left: int,
    normalize: bool = True,
    dropout: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Same as `lightconv_reference`, without gradients; weight (H, K)."""
    y = empty_like(x)
    _run(
        "lcmt_lightconv",
        x,
        _wide(weight, x),
        y=y,
        options=(padding_left, normalize, dropout, seed),
    )
    return y


def lightconv_native_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    *,
    padding_left: int,
    normalize: bool = True,
    dropout: float = 0.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Gradients of `lightconv_native` for x and weight, given that of y, in their dtypes."""
    wide = _wide(weight, x)
    grad_x, grad_weight = empty_like(x), empty_like(wide)
    _run(
        "lcmt_lightconv_backward",
        x,
        wide,
        grad_y=grad_y,
        grads=(grad_x, grad_weight),
        options=(padding_left, normalize, dropout, seed),
    )
    return grad_x, grad_weight.to(weight.dtype)


def dynamicconv_native(
    x: Tensor,
    weight: Tensor,
    *,
    padding_left: int,
    normalize: bool = True,
    dropout: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Same as `dynamicconv_reference`, without gradients; weight (B, T, H, K) in x's dtype."""
    y = empty_like(x)
    options = (padding_left, normalize, dropout, seed)
    _run("lcmt_dynamicconv", x, weight.contiguous(), y=y, options=options)
    return y


def dynamicconv_native_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    *,
    padding_left: int,
    normalize: bool = True,
    dropout: float = 0.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Gradients of `dynamicconv_native` for x and weight, given that of y."""
    rows = weight.contiguous()
    grads = empty_like(x), empty_like(rows)
    options = (padding_left, normalize, dropout, seed)
    _run("lcmt_dynamicconv_backward", x, rows, grad_y=grad_y, grads=grads, options=options)
    return grads


def lightconv_step_native(
    x: Tensor, ring: Tensor, position: Tensor, weight: Tensor, *, normalize: bool = True
) -> Tensor:
    """Same as `lightconv_step_reference`; the ring is contiguous."""
    return _run_step(x, ring, position, weight, normalize=normalize, dynamic=False)


def dynamicconv_step_native(
    x: Tensor, ring: Tensor, position: Tensor, weight: Tensor, *, normalize: bool = True
) -> Tensor:
    """Same as `dynamicconv_step_reference`; the ring is contiguous."""
    return _run_step(x, ring, position, weight, normalize=normalize, dynamic=True)


def empty_like(x: Tensor) -> Tensor:
    """A contiguous output, not initialised; tests fill it with NaN."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _wide(weight: Tensor, x: Tensor) -> Tensor:
    """LightConv's few weights in the type of the sums."""
    return weight.to(torch.float64 if x.dtype is torch.float64 else torch.float32).contiguous()


def _run(
    name: str,
    x: Tensor,
    weight: Tensor,
    *,
    options: tuple[int, bool, float, int],
    y: Tensor | None = None,
    grad_y: Tensor | None = None,
    grads: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Describe tensors to a kernel and run it on torch's number of threads."""
    x, grad_y = rows(x), None if grad_y is None else rows(grad_y)
    (batch, time, channels), (heads, width) = x.shape, weight.shape[-2:]
    padding_left, normalize, dropout, seed = options
    grad_x, grad_weight = grads or (None, None)
    call = _CALL.pack(
        x.data_ptr(),
        weight.data_ptr(),
        0 if grad_y is None else grad_y.data_ptr(),
        0 if y is None else y.data_ptr(),
        0 if grad_x is None else grad_x.data_ptr(),
        0 if grad_weight is None else grad_weight.data_ptr(),
        batch,
        time,
        channels,
        heads,
        width,
        padding_left,
        x.stride(0),
        x.stride(1),
        0 if grad_y is None else grad_y.stride(0),
        0 if grad_y is None else grad_y.stride(1),
        seed,
        dropout,
        normalize,
        torch.get_num_threads(),
        KERNEL_TYPES[x.dtype],
    )
    if getattr(load_library(), name)(call):
        raise MemoryError(f"{name}: not enough memory for {tuple(x.shape)}")


def _run_step(
    x: Tensor, ring: Tensor, position: Tensor, weight: Tensor, *, normalize: bool, dynamic: bool
) -> Tensor:
    x, position, weight = rows(x), position.contiguous(), weight.contiguous()
    sums = torch.float64 if x.dtype is torch.float64 else torch.float32
    if weight.dtype is not x.dtype:
        weight = weight.to(sums)
    y = empty_like(x)
    call = _STEP_CALL.pack(
        x.data_ptr(),
        weight.data_ptr(),
        position.data_ptr(),
        ring.data_ptr(),
        y.data_ptr(),
        *x.shape,
        *weight.shape[-2:],
        x.stride(0),
        x.stride(1),
        normalize,
        torch.get_num_threads(),
        KERNEL_TYPES[x.dtype],
        weight.dtype is sums,
        dynamic,
    )
    if load_library().lcmt_step(call):
        raise MemoryError(f"one step: not enough memory for {tuple(x.shape)}")
    return y


def rows(x: Tensor) -> Tensor:
    """Channels side by side; other strides as they are."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
