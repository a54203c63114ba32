"""Who may import whom: the layers of the library, held by its syntax trees."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lightconv_mt

PACKAGE = "lightconv_mt"
ROOT = Path(lightconv_mt.__file__).parent

# A module or folder of the package -> its level; imports go down, or stay inside one folder.
LEVELS = {
    "errors": 0,
    "whole_files": 0,
    "ops": 0,
    "data": 0,
    "scoring": 1,
    "rouge": 0,
    "paper_scoring": 2,
    "significance": 2,
    "mixers": 1,
    "model": 2,
    "train": 3,
    "decode": 3,
    "interop": 3,
    "typed": 3,
    "validation": 4,
    "evaluation": 4,
    "precision": 4,
    "preparation": 4,
    "schemas": 4,
    "overview": 4,
    "overrides": 4,
    "compose": 4,
    "config": 4,
    "rehearsal": 4,
    "run_folder": 4,
    "imported_run": 4,
    "start_from": 4,
    "interactive": 4,
    "assemble": 4,
    "training": 4,
    "trained_run": 4,
    "translation": 4,
    "corpus_translation": 4,
    "api": 5,
    "cli": 5,
}
# What every level may import, the lowest too.
FOUNDATION = {"errors", "whole_files"}
# Sideways steps on one level, each with its reason.
SIDEWAYS = {
    ("interop", "decode"),  # golden data holds beam searches
    ("interop", "train"),  # and losses; checkpoints are written by the one writer
}
CONFIG_LIBRARIES = {"hydra", "omegaconf"}


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of every import, `from a import b` as a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def broken_rules(module: str, source: str) -> list[str]:
    """Everything in a source file that its place forbids; module is like data.corpus."""
    area = module.split(".")[0]
    level = LEVELS[area]
    broken = []
    for line, name in imports(source):
        library = name.split(".")[0]
        if library in CONFIG_LIBRARIES and level < 4 and area != "typed":
            broken.append(f"{module}:{line}: {library} below level 4")
        if library == "triton" and not module.startswith("ops.triton_"):
            broken.append(f"{module}:{line}: triton outside ops/triton_*.py")
        if library != PACKAGE or name.count(".") == 0 or name == f"{PACKAGE}.__version__":
            continue
        other = name.split(".")[1]
        if other == area or (area, other) in SIDEWAYS or other in FOUNDATION:
            continue
        allowed = LEVELS[other] <= level if level >= 4 else LEVELS[other] < level
        if not allowed:
            broken.append(f"{module}:{line}: level {level} imports {other}, level {LEVELS[other]}")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
            broken.append(f"{module}:{node.lineno}: print in the library")
    return broken


def modules() -> list[str]:
    paths = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
    return sorted(
        ".".join(path.with_suffix("").parts) for path in paths if "configs" not in path.parts
    )


@pytest.mark.parametrize("module", [name for name in modules() if name != "__init__"])
def test_imports_go_down(module: str) -> None:
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    assert broken_rules(module.removesuffix(".__init__"), path.read_text()) == []


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("ops.reference", "from lightconv_mt.model import layers", "level 0 imports model"),
        ("train.loop", "import lightconv_mt.decode.translator", "level 3 imports decode"),
        ("data.corpus", "from lightconv_mt.ops import lightconv", "level 0 imports ops"),
        ("model.layers", "def f():\n    import omegaconf", "omegaconf below level 4"),
        ("model.layers", "from lightconv_mt.config import to_typed", "level 2 imports config"),
        ("ops.native", "import triton.language as tl", "triton outside"),
        ("cli", "print(1)", "print in the library"),
    ],
)
def test_the_rules_find_what_breaks_them(module: str, source: str, complaint: str) -> None:
    (found,) = broken_rules(module, source)
    assert complaint in found


def test_every_module_has_a_level_and_none_is_a_drawer() -> None:
    names = {name.split(".")[0] for name in modules()} - {"__init__"}
    assert names == set(LEVELS)
    assert not {"utils", "helpers", "common", "misc"} & {
        part for name in modules() for part in name.split(".")
    }


@pytest.mark.parametrize("module", [name for name in modules() if name.endswith("__init__")])
def test_package_files_hold_names_and_nothing_else(module: str) -> None:
    tree = ast.parse(ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text())
    kinds = {type(node) for node in tree.body[1:]}
    allowed = {ast.Import, ast.ImportFrom, ast.Assign}
    # mixers/ alone also imports its siblings
    assert kinds <= allowed | ({ast.For} if module == "mixers.__init__" else set())
