"""The convolutions in C++ for CPUs: built on first use where a compiler is, kept for the next."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import signal
import struct
import subprocess
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "csrc"
# One library, so that all are there or none.
KERNELS = (
    *("kernels.cpp", "cross_entropy.cpp", "residual.cpp", "attention.cpp"),
    *("best_tokens.cpp", "encoder.cpp", "decoder.cpp", "search.cpp"),
)
BUILD_TIMEOUT_SECONDS = 300
KERNEL_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}


class NativeUnavailableError(RuntimeError):
    """There are no native kernels here, and why."""


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


@cache
def load_library(march: str = "native", *, sources: tuple[str, ...] = KERNELS) -> ctypes.CDLL:
    """Build the kernels if they are not built yet, and load them.

    Args:
        march: the compiler's name for the machine to build for.
        sources: files in csrc/.

    Raises:
        NativeUnavailableError: when there is no compiler, or it fails.
    """
    path = _build(march, *sources)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailableError(f"{path} cannot be loaded: {error}") from error
    return library


def _build(march: str, *sources: str) -> Path:
    compiler = next(
        (
            found
            for name in (os.environ.get("CXX"), "c++", "g++", "clang++")
            if name and (found := shutil.which(name))
        ),
        None,
    )
    if compiler is None:
        raise NativeUnavailableError("there is no C++ compiler (c++, g++, clang++ or $CXX)")
    flags = [f"-march={march}", "-O3", "-std=c++20", "-fPIC", "-shared"]
    if platform.machine() in ("arm64", "aarch64"):
        flags[0] = f"-mcpu={march}"
    digest = hashlib.sha256(repr((flags, compiler, _compiler_version(compiler), _cpu())).encode())
    files = [SOURCES / source for source in sources]
    for path in (*files, *sorted(SOURCES.glob("*.h"))):
        digest.update(path.read_bytes())
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(cache_home) / "lightconv_mt" / "kernels" / f"{digest.hexdigest()[:24]}.so"
    if path.exists():
        return path
    logger.info("building the CPU kernels, once: %s", path)
    fresh = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without OpenMP the kernels run on one thread.
        for parallel in (["-fopenmp"], []):
            command = [compiler, *flags, *parallel, "-o", str(fresh), *map(str, files)]
            code, said = _compile(command)
            if code == 0:
                break
        else:
            errors = [line for line in said.splitlines() if "error" in line]
            raise NativeUnavailableError(f"{compiler} failed: {' '.join(errors[:1])}")
        os.replace(fresh, path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailableError(f"the kernels cannot be built: {error}") from error
    finally:
        fresh.unlink(missing_ok=True)
    return path


def _compile(command: list[str]) -> tuple[int, str]:
    """Exit code and error output of a compiler; what it started ends with it."""
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as compiler:
        try:
            _, said = compiler.communicate(timeout=BUILD_TIMEOUT_SECONDS)
        except BaseException:  # it took too long, or Ctrl-C
            os.killpg(compiler.pid, signal.SIGKILL)
            raise
    return compiler.returncode, said


def _compiler_version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return done.stdout


def _cpu() -> str:
    """What `native` means here: a home folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return f"{platform.machine()} {platform.processor()}"


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
