"""The C++ kernels as a library: built on first use where a compiler is, kept for the next."""

import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "csrc"
# One library, so that all are there or none; those that take longest to compile first.
KERNELS = (
    *("kernels.cpp", "attention.cpp", "residual.cpp", "cross_entropy.cpp", "encoder.cpp"),
    *("decoder.cpp", "search.cpp", "best_tokens.cpp", "linear.cpp"),
)
BUILD_TIMEOUT_SECONDS = 300
NO_MEMORY = 3  # kNoMemory of csrc/memory.h


class NativeUnavailableError(RuntimeError):
    """There are no native kernels here, and why."""


def enough_memory(code: int, name: str, shape: Sequence[int]) -> int:
    """The code that a kernel returned, if it had enough memory.

    Args:
        code: as returned.
        name: of the kernel.
        shape: of what it was given.

    Raises:
        MemoryError: when it had not.
    """
    if code == NO_MEMORY:
        raise MemoryError(f"{name}: not enough memory for {tuple(shape)}")
    return code


@cache
def load_library(march: str = "native", *, sources: tuple[str, ...] = KERNELS) -> ctypes.CDLL:
    """Build the kernels if they are not built yet, and load them.

    Args:
        march: the compiler's name for the machine to build for.
        sources: files in csrc/.

    Raises:
        NativeUnavailableError: when there is no compiler, it fails, or nothing can be kept.
    """
    path = build_library(march, *sources)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailableError(f"{path} cannot be loaded: {error}") from error


def build_library(march: str, *sources: str) -> Path:
    """The file of the kernels, built unless it is there and whole.

    Raises:
        NativeUnavailableError: as `load_library`.
    """
    compiler = _find_compiler()
    machine = "-mcpu" if platform.machine() in ("arm64", "aarch64") else "-march"
    flags = (f"{machine}={march}", "-O3", "-std=c++20", "-fPIC")
    folder = _cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        recipe = Recipe(compiler, (*flags, "-fopenmp"), sources)
        key = recipe.key()
        if found := _whole(folder, key):
            return found
        if not _has_openmp(recipe):
            logger.warning(
                "the CPU kernels run on one thread: %s has no OpenMP; install its library (libomp "
                "for clang), or name another compiler by CXX",
                " ".join(compiler),
            )
            recipe = Recipe(compiler, flags, sources)
            key = recipe.key()
        with _alone_in(folder):
            return _whole(folder, key) or _build(folder, key, recipe)
    except subprocess.TimeoutExpired as error:
        raise NativeUnavailableError(f"the kernels cannot be built: {error}") from error
    except OSError as error:
        raise NativeUnavailableError(
            f"the kernels cannot be built in {folder}: {error}; "
            f"set XDG_CACHE_HOME to a folder that can be written"
        ) from error


@dataclass(frozen=True)
class Recipe:
    """What a library is built by and from.

    Attributes:
        compiler: the words that call it.
        flags: of every call.
        sources: files in csrc/.
    """

    compiler: tuple[str, ...]
    flags: tuple[str, ...]
    sources: tuple[str, ...]

    def key(self) -> str:
        """Digest of this, the compiler's version, the processor and every file of csrc/."""
        version = subprocess.run(
            [*self.compiler, "--version"], capture_output=True, text=True, check=False
        ).stdout
        digest = hashlib.sha256(repr((self, version, _processor())).encode())
        for path in sorted((*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h"))):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:24]

    def command(self, *words: str | Path) -> list[str]:
        """A call of the compiler."""
        return [*self.compiler, *self.flags, *map(str, words)]


def _find_compiler() -> tuple[str, ...]:
    if asked := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(asked[0]) is None:
            raise NativeUnavailableError(
                f"there is no C++ compiler {asked[0]}, which CXX names; unset or mend CXX"
            )
        return tuple(asked)
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return (found,)
    raise NativeUnavailableError("there is no C++ compiler (c++, g++, clang++ or $CXX)")


def _cache_folder() -> Path:
    try:
        cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:  # a user without a home folder
        raise NativeUnavailableError(
            f"the kernels cannot be kept: {error}; set XDG_CACHE_HOME"
        ) from error
    return Path(cache_home) / "lightconv_mt" / "kernels"


def _whole(folder: Path, key: str) -> Path | None:
    """The library of a key, whose name ends in its own digest; a damaged one is removed.

    Loading half a file would end the process without a word.
    """
    for path in sorted(folder.glob(f"{key}-*.so")):
        if _library_name(key, path) == path.name:
            return path
        logger.warning("%s is damaged: it is removed and built again", path)
        path.unlink(missing_ok=True)
    return None


def _library_name(key: str, path: Path) -> str:
    return f"{key}-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.so"


def _build(folder: Path, key: str, recipe: Recipe) -> Path:
    logger.info("building the CPU kernels, once, in %s", folder)
    with TemporaryDirectory(prefix="building-", dir=folder) as place:
        objects = [Path(place, source).with_suffix(".o") for source in recipe.sources]
        _run_all(
            recipe.command("-c", SOURCES / source, "-o", target)
            for source, target in zip(recipe.sources, objects, strict=True)
        )
        built = Path(place, "kernels.so")
        _run_all([recipe.command("-shared", *objects, "-o", built)])
        path = folder / _library_name(key, built)
        os.replace(built, path)
    return path


def _has_openmp(recipe: Recipe) -> bool:
    """Whether the smallest program that asks for it compiles and links."""
    with TemporaryDirectory() as place:
        source = Path(place, "probe.cpp")
        source.write_text("#include <omp.h>\nint threads() { return omp_get_max_threads(); }\n")
        try:
            _run_all([recipe.command("-shared", source, "-o", source.with_suffix(".so"))])
        except NativeUnavailableError:
            return False
    return True


def _run_all(commands: Iterable[list[str]]) -> None:
    """Run compilers beside each other, one for each processor; what they started ends with them.

    Raises:
        NativeUnavailableError: when one fails; names its first error.
        TimeoutExpired: when they take longer than BUILD_TIMEOUT_SECONDS.
    """
    deadline = time.monotonic() + BUILD_TIMEOUT_SECONDS
    waiting, running = list(commands), list[subprocess.Popen[str]]()
    compiler = waiting[0][0]
    try:
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                running.append(_start(waiting.pop(0)))
            _, said = running[0].communicate(timeout=deadline - time.monotonic())
            if running.pop(0).returncode:
                errors = [line for line in said.splitlines() if "error:" in line]
                raise NativeUnavailableError(f"{compiler} failed: {' '.join(errors[:1])}")
    finally:  # one failed, it took too long, or Ctrl-C
        for each in running:
            with suppress(ProcessLookupError):
                os.killpg(each.pid, signal.SIGKILL)
            each.communicate()


def _start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Processes of one first run wait for the one that builds, where the file system has locks."""
    with (folder / "lock").open("w") as lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _processor() -> str:
    """What `native` means here: a home folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
