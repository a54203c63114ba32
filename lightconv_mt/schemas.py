"""The configuration classes without torch: reads them out of the library's source files.

A mixer keeps its configuration beside its `nn.Module`, so importing one means importing torch,
which takes longer than composing and checking a whole configuration. `read_name` executes only what
a class needs of its file: Enums, dataclasses, undecorated functions, constants, imports of the
standard library, and the same of other library files. Nothing of a run folder is read here.
"""

import ast
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from lightconv_mt.typed import Registers

PACKAGE = __package__
ROOT = Path(__file__).parent

# Imported as they are: they do without torch themselves, and errors must be the real classes.
TORCH_FREE = frozenset({f"{PACKAGE}.errors", f"{PACKAGE}.typed"})

Definition = (
    ast.ClassDef | ast.FunctionDef | ast.Assign | ast.AnnAssign | ast.Import | ast.ImportFrom
)


class SourceFile:
    """One source file; names are executed on demand, each once, into `namespace`."""

    def __init__(self, module: str) -> None:
        """Parse the file of a dotted module name."""
        stem = ROOT.joinpath(*module.split(".")[1:])
        self.path = stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")
        self.namespace: dict[str, Any] = {"__name__": module, "__file__": str(self.path)}
        self.waiting: dict[str, Definition] = {}
        self.failures: dict[str, Exception] = {}
        for node in ast.parse(self.path.read_bytes(), filename=str(self.path)).body:
            self.waiting.update((name, node) for name in _defined_names(node))  # type: ignore[misc]

    def resolve(self, name: str) -> bool:
        """Execute the definition of `name` and of all it mentions; return whether that worked."""
        node = self.waiting.pop(name, None)
        if node is None:
            return name in self.namespace
        if isinstance(node, ast.Import | ast.ImportFrom):
            return self._import(node, name)
        for part in ast.walk(node):
            if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                _drop_annotations(part)
        for part in ast.walk(node):
            if isinstance(part, ast.Name):
                self.resolve(part.id)
        try:
            exec(
                compile(ast.Module([node], []), str(self.path), "exec", dont_inherit=True),
                self.namespace,
            )
        except Exception as error:  # needs torch or the like, so it is no configuration
            self.failures[name] = error
            return False
        return True

    def _import(self, node: ast.Import | ast.ImportFrom, name: str) -> bool:
        alias = next(alias for alias in node.names if _bound_name(alias) == name)
        module = node.module if isinstance(node, ast.ImportFrom) else alias.name
        assert module is not None, f"{self.path}:{node.lineno}: relative import"
        if module in TORCH_FREE or module.split(".")[0] in sys.stdlib_module_names:
            source: Any = import_module(module)
            if isinstance(node, ast.ImportFrom):
                source = getattr(source, alias.name)
            self.namespace[name] = (
                source if isinstance(node, ast.ImportFrom) or alias.asname else sys.modules[name]
            )
            return True
        if module.split(".")[0] != PACKAGE or not read_file(module).resolve(alias.name):
            return False
        self.namespace[name] = read_file(module).namespace[alias.name]
        return True


_files: dict[str, SourceFile] = {}


def read_file(module: str) -> SourceFile:
    """The source file of a module, parsed once; nothing of it is executed yet."""
    if module not in _files:
        _files[module] = SourceFile(module)
    return _files[module]


def read_name(module: str, name: str) -> Any:
    """The torch-free twin of `module.name`.

    Raises:
        LookupError: when the name needs more than the standard library.
    """
    file = read_file(module)
    if not file.resolve(name):
        raise LookupError(
            f"{file.path} has no {name} that works without torch"
        ) from file.failures.get(name)
    return file.namespace[name]


def read_root(name: str) -> tuple[type, Registers]:
    """The torch-free twins of `config.name` and of the registers its fields choose from."""
    registers: Registers = read_name(f"{PACKAGE}.config", "REGISTERS")
    for base, _ in registers.values():
        _read_registered(base.__module__)
    root: type = read_name(f"{PACKAGE}.config", name)
    return root, registers


def _read_registered(module: str) -> None:
    """Execute every class with a `register_...` decorator in the folder that holds a module."""
    parent = module.rpartition(".")[0]
    for path in sorted(read_file(module).path.parent.glob("*.py")):
        file = read_file(parent if path.stem == "__init__" else f"{parent}.{path.stem}")
        for name in [name for name, node in file.waiting.items() if _is_registered(node)]:
            file.resolve(name)


def _defined_names(node: ast.stmt) -> list[str]:
    """Names under which a top-level statement may be asked for; none for what is never executed."""
    match node:
        case ast.ClassDef(bases=bases, decorator_list=decorators):
            words = {
                word.id
                for part in (*bases, *decorators)
                for word in ast.walk(part)
                if isinstance(word, ast.Name)
            }
            return [node.name] if words & {"Enum", "dataclass"} else []
        case ast.FunctionDef(decorator_list=[]):
            return [node.name]
        case (
            ast.Assign(targets=[ast.Name(id=name)])
            | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr())
        ):
            return [name]
        case ast.Import() | ast.ImportFrom():
            return [_bound_name(alias) for alias in node.names]
    return []


def _is_registered(node: Definition) -> bool:
    decorators = node.decorator_list if isinstance(node, ast.ClassDef) else []
    return any(
        isinstance(part, ast.Name) and part.id.startswith("register_") for part in decorators
    )


def _bound_name(alias: ast.alias) -> str:
    return alias.asname or alias.name.partition(".")[0]


def _drop_annotations(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
    """Forget the annotations of a signature: they may name tensors, and mean nothing here."""
    arguments = function.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        argument.annotation = None
    if not isinstance(function, ast.Lambda):
        function.returns = None
