"""Building, keeping and finding the C++ kernels; with a stand-in for the compiler where it can."""

import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cpp_kernels import cpu_backends

from lightconv_mt.ops import Backend, library

if Backend.native not in cpu_backends():
    pytest.skip("no C++ compiler", allow_module_level=True)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A real compiler of a tiny library, which notes its calls, and a cache of its own."""
    sources = tmp_path / "csrc"
    sources.mkdir()
    for name in ("one", "two"):
        (sources / f"{name}.cpp").write_text(f'extern "C" int {name}() {{ return 1; }}\n')
    program = tmp_path / "noting"
    real = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nexec {real} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(library, "SOURCES", sources)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(program))
    return program


def build() -> Path:
    return library.build_library("native", "one.cpp", "two.cpp")


def compiled(compiler: Path) -> int:
    """How many times a file of csrc/ was compiled."""
    return sum(" -c " in line for line in (compiler.parent / "calls").read_text().splitlines())


def test_what_is_built_is_kept_until_a_file_or_the_compiler_changes(
    compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build()
    assert build() == path
    assert compiled(compiler) == 2
    assert [each.name for each in path.parent.iterdir() if each.is_dir()] == []
    # Another file that a source may include, not among those that are compiled.
    (library.SOURCES / "three.cpp").write_text("// changed\n")
    assert build() != path
    assert compiled(compiler) == 4
    monkeypatch.setenv("CXX", f"{compiler} -DOTHER")
    assert build().exists()
    assert compiled(compiler) == 6


@pytest.mark.parametrize("left", [0.0, 0.5])
def test_a_damaged_library_is_built_again(
    left: float, compiler: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = build()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(left * len(whole))])
    assert build().read_bytes()[:4] == whole[:4]
    assert compiled(compiler) == 4
    assert f"{path} is damaged" in caplog.text


def test_many_at_once_build_once(compiler: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        paths = {found.result() for found in [pool.submit(build) for _ in range(6)]}
    assert len(paths) == 1
    assert compiled(compiler) == 2


def test_a_compiler_without_openmp_is_named_and_one_with_it_builds_anew(
    compiler: Path, caplog: pytest.LogCaptureFixture
) -> None:
    real = compiler.read_text()
    compiler.write_text(
        real.replace("\nexec", '\ncase "$*" in *-fopenmp*) echo no >&2; exit 1;; esac\nexec')
    )
    path = build()
    assert f"one thread: {compiler} has no OpenMP; install its library" in caplog.text
    assert build() == path
    compiler.write_text(real)
    assert build() != path


def test_a_cache_that_can_only_be_read_is_read(
    compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build()

    def read_only(*_: object, **__: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(library, "_alone_in", read_only)
    monkeypatch.setattr(library, "TemporaryDirectory", read_only)
    assert build() == path


def test_a_cache_that_cannot_be_is_named_with_the_remedy(
    compiler: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        library.NativeUnavailableError, match=r"cannot be built in .*/file/.*: set|set XDG_CACHE"
    ):
        build()
    monkeypatch.delenv("XDG_CACHE_HOME")

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(library.Path, "home", nobody)
    with pytest.raises(library.NativeUnavailableError, match="home directory.; set XDG_CACHE_HOME"):
        build()


def test_an_error_of_the_source_is_named_and_nothing_stays(compiler: Path) -> None:
    (library.SOURCES / "two.cpp").write_text("int two() { return nothing; }\n")
    with pytest.raises(library.NativeUnavailableError, match=r"failed: .*two\.cpp.* error"):
        build()
    folder = compiler.parent / "cache" / "lightconv_mt" / "kernels"
    assert [each.name for each in folder.iterdir()] == ["lock"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are read from /proc")
def test_a_compiler_that_takes_too_long_ends_with_what_it_started(
    compiler: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler.write_text(
        f"#!/bin/sh\n[ $1 = --version ] && exit\nsleep 60 & echo $! > {tmp_path}/started\nwait\n"
    )
    monkeypatch.setattr(library, "BUILD_TIMEOUT_SECONDS", 3)
    with pytest.raises(library.NativeUnavailableError, match="cannot be built: .*timed out"):
        build()
    started = int((tmp_path / "started").read_text())
    for _ in range(300):
        state = Path(f"/proc/{started}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    pytest.fail(f"process {started} lives on")


def test_no_compiler_and_a_broken_one_are_named(
    compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/no/compiler -O1")
    with pytest.raises(library.NativeUnavailableError, match="no C.. compiler /no/compiler, which"):
        build()
    monkeypatch.setenv("CXX", "/bin/false")
    with pytest.raises(library.NativeUnavailableError, match="/bin/false failed"):
        build()
    monkeypatch.setenv("CXX", "/bin/true")
    with pytest.raises(library.NativeUnavailableError, match="cannot be built"):
        build()
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(library.shutil, "which", lambda _: None)
    with pytest.raises(library.NativeUnavailableError, match="there is no C.. compiler"):
        build()


# Little memory is left where inputs and outputs are there: what is wanted besides is not.
_SCARCE = """
import resource, torch
from lightconv_mt.ops import Backend, {module}
from lightconv_mt.ops.{module} import *
{prepare}
torch.set_num_threads({threads})
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 20),) * 2)
try:
    {call}
except MemoryError as error:
    print("MemoryError:", error)
"""
_CALLS = {
    "dynamicconv": (
        "native",
        "x, w = torch.randn(1, 64, 8), torch.randn(1, 64, 2, 40_000)",
        "dynamicconv_native(x, w, padding_left=0)",
    ),
    "lightconv": (
        "native",
        "x, w = torch.randn(1, 64, 8), torch.randn(2, 1_000_000)",
        "lightconv_native(x, w, padding_left=0)",
    ),
    "attention": (
        "attention",
        "q, k = torch.randn(1, 1, 4, 64), torch.randn(1, 1, 50_000, 64)",
        "attention(q, k, k, None, backend=Backend.native)",
    ),
    "cross-entropy": (
        "cross_entropy",
        "x, t = torch.randn(2, 4_000_000), torch.zeros(2, dtype=torch.int64)\n"
        "s = Smoothing(label_smoothing=0.1)",
        "cross_entropy_(x, t, s, gradient=True, backend=Backend.native)",
    ),
}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", _CALLS)
def test_too_little_memory_is_an_error_of_python(name: str, threads: int) -> None:
    module, prepare, call = _CALLS[name]
    # Threads start, and the library is loaded, while there is memory.
    warm = "from lightconv_mt.ops import lightconv\ntorch.set_num_threads(2)\n" + (
        "lightconv(torch.randn(8, 64, 64), torch.randn(8, 3), padding_left=1, "
        "backend=Backend.native)\n"
    )
    program = _SCARCE.format(module=module, prepare=warm + prepare, call=call, threads=threads)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "MemoryError:" in done.stdout
    assert "not enough memory" in done.stdout
