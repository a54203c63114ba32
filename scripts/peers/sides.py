"""The sides of the comparison, and which of them can run here."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).parents[1]
# What train/memory.py tells glibc; a peer is told by these variables, without a change to its code.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(2**33),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}


@dataclass(frozen=True)
class Package:
    """What a peer is made of.

    Attributes:
        module: to import.
        folder: of those installed for peers.
        install: the words after `pip install --no-deps --target FOLDER`.
    """

    module: str
    folder: str
    install: str

    def is_there(self, peers: Path) -> bool:
        """Whether it is in the folder of peers or in this environment."""
        inside = (peers / self.folder / self.module).is_dir()
        return inside or importlib.util.find_spec(self.module) is not None


FAIRSEQ = Package("fairseq", "fairseq", "fairseq==0.12.2 bitarray")
TRANSFORMERS = Package("transformers", "transformers", "transformers tokenizers typer-slim")


@dataclass(frozen=True)
class Side:
    """One row of the table.

    Attributes:
        name: of the toolkit and model.
        program: module of this package that trains it.
        model: lightconv, dynamicconv or attention.
        precision: fp32 or bf16.
        malloc: whether freed memory is kept; ours does that by itself, a peer is given MALLOC.
        package: that has to be installed; None for what comes with this library.
        seed: of weights, masks and order.
    """

    name: str
    program: str
    model: str
    precision: str
    malloc: bool
    package: Package | None = None
    seed: int = 1

    @property
    def ours(self) -> bool:
        """Whether it is this library's."""
        return self.program == "ours"


def _list_sides() -> dict[str, Side]:
    sides = {
        f"{model}-{precision}": Side(f"ours {title}", "ours", model, precision, True)
        for model, title in (
            ("lightconv", "LightConv"),
            ("dynamicconv", "DynamicConv"),
            ("attention", "attention"),
        )
        for precision in ("bf16", "fp32")
    }
    peers = (
        ("fairseq-lightconv", "fairseq LightConv", "fairseq_side", "lightconv", FAIRSEQ),
        ("fairseq-dynamicconv", "fairseq DynamicConv", "fairseq_side", "dynamicconv", FAIRSEQ),
        ("fairseq-attention", "fairseq Transformer", "fairseq_side", "attention", FAIRSEQ),
        ("marian", "transformers Marian", "marian", "attention", TRANSFORMERS),
        ("nn-transformer", "torch nn.Transformer", "nn_transformer", "attention", None),
    )
    for key, name, program, model, package in peers:
        precisions = {key: "fp32", f"{key}-bf16": "bf16"}
        if package is FAIRSEQ:  # which takes --bf16 without a GPU for a TPU, and ends
            del precisions[f"{key}-bf16"]
        for start, precision in precisions.items():
            # The seeds differ, so that two losses of one peer show what chance does.
            sides[start] = Side(name, program, model, precision, False, package, seed=1)
            sides[f"{start}-malloc"] = Side(name, program, model, precision, True, package, seed=2)
    return sides


SIDES = _list_sides()


def choose_sides(keys: list[str], peers: Path) -> tuple[list[Side], list[str]]:
    """The sides that can run, and a line for each that lacks its package."""
    chosen, lines = [], {}
    for side in map(SIDES.__getitem__, keys):
        package = side.package
        if package is None or package.is_there(peers):
            chosen.append(side)
        else:
            target = peers / package.folder
            lines[side.name] = (
                f"{side.name} is left out: {package.module} is not installed; "
                f"pip install --no-deps --target {target} {package.install}"
            )
    return chosen, list(lines.values())


def environment(side: Side, peers: Path, threads: int) -> dict[str, str]:
    """Variables of a side's process: this one's, but for memory, threads and where packages are."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    folders = [str(SCRIPTS), str(SCRIPTS.parent)]
    if side.package is not None:
        folders.append(str(peers / side.package.folder))
    if "PYTHONPATH" in kept:
        folders.append(kept["PYTHONPATH"])
    number = str(threads)
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(folders),
        "OMP_NUM_THREADS": number,
        "MKL_NUM_THREADS": number,
        **(MALLOC if side.malloc and not side.ours else {}),
    }
