"""Checkpoints: atomic save, strict load, keep-last-n and keep-best, averaging."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightconv_mt.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"


@dataclass(kw_only=True)
class CheckpointConfig:
    """The last n checkpoints and the best are kept; `average_last` are averaged at the end."""

    save_every_steps: int = 1000  # and at every validation, and at the end
    keep_last: int = 10
    average_last: int = 10  # 0: no averaging

    def __post_init__(self) -> None:
        if self.save_every_steps < 1:
            raise ConfigError(
                f"checkpoint.save_every_steps is {self.save_every_steps}; give 1 or more"
            )
        if self.keep_last < 2:
            raise ConfigError(
                f"checkpoint.keep_last is {self.keep_last}; "
                f"give 2 or more, so that one good one remains"
            )
        if not 0 <= self.average_last <= self.keep_last:
            raise ConfigError(
                f"checkpoint.average_last is {self.average_last}; "
                f"give 0 to checkpoint.keep_last ({self.keep_last})"
            )


@dataclass(frozen=True)
class Checkpoint:
    """One verified checkpoint read into memory.

    Attributes:
        step: optimiser steps done.
        model: parameters by name.
        optimizer: tensors by `<kind>.<parameter name>`.
        state: what else the loop needs, plain JSON values.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


class CheckpointStore:
    """The `checkpoints/` folder of a run: one sub-folder a checkpoint, `best` naming the best."""

    def __init__(self, run_dir: Path, config: CheckpointConfig) -> None:
        """Keep the place; nothing is read or written yet."""
        self.folder, self.config = run_dir / "checkpoints", config

    def remove_leftovers(self) -> None:
        """Remove what an interrupted save left behind; for the one process that trains here."""
        for leftover in self.folder.glob(".*.tmp-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def save(self, checkpoint: Checkpoint, *, best: bool) -> None:
        """Write a checkpoint whole or not at all, then drop those that are no longer kept."""
        name = _folder_name(checkpoint.step)
        if not (self.folder / name).exists():
            write_folder(
                self.folder / name,
                {
                    "model.safetensors": lambda path: save_file(checkpoint.model, path),
                    "optimizer.safetensors": lambda path: save_file(checkpoint.optimizer, path),
                    "state.json": lambda path: path.write_text(
                        json.dumps(checkpoint.state, indent=1)
                    ),
                },
            )
        if best:
            replace_text(self.folder / "best", name)
        kept = {*self.steps()[-self.config.keep_last :], self.best_step()}
        for step in self.steps():
            if step not in kept:
                shutil.rmtree(self.folder / _folder_name(step))

    def load_latest(self) -> Checkpoint | None:
        """The newest good checkpoint, or None if there is none yet; bad ones are named in the log.

        Raises:
            CheckpointError: when there are checkpoints and all are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self._load(step)
            except CheckpointError as error:
                logger.warning("%s; taking the one before it", error)
        if steps:
            raise CheckpointError(
                f"all {len(steps)} checkpoints in {self.folder} are damaged; choose a new run_dir"
            )
        return None

    def steps(self) -> list[int]:
        """Steps of the checkpoints here, ascending."""
        names = (path.name for path in self.folder.glob("step_*") if (path / MANIFEST).exists())
        return sorted(int(name.removeprefix("step_")) for name in names)

    def best_step(self) -> int | None:
        """Step of the best checkpoint so far."""
        pointer = self.folder / "best"
        return int(pointer.read_text().removeprefix("step_")) if pointer.exists() else None

    def path(self, step: int) -> Path:
        """Folder of the checkpoint of the given step."""
        return self.folder / _folder_name(step)

    def _load(self, step: int) -> Checkpoint:
        path = self.path(step)
        verify_folder(path)
        return Checkpoint(
            step=step,
            model=load_file(path / "model.safetensors"),
            optimizer=load_file(path / "optimizer.safetensors"),
            state=json.loads((path / "state.json").read_text()),
        )


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by name, a shared one once, on the CPU and contiguous."""
    return {
        name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()
    }


def load_model_tensors(model: nn.Module, tensors: dict[str, Tensor], *, source: object) -> None:
    """Copy tensors into the model.

    Raises:
        CheckpointError: when names or shapes differ; nothing is copied then.
    """
    parameters = dict(model.named_parameters())
    missing, unknown = (
        sorted(parameters.keys() - tensors.keys()),
        sorted(tensors.keys() - parameters.keys()),
    )
    if missing or unknown:
        raise CheckpointError(
            f"{source} does not fit the model: "
            f"{len(missing)} parameters are missing ({', '.join(missing[:3])}) and "
            f"{len(unknown)} unknown ({', '.join(unknown[:3])}); "
            f"use the configuration it was trained with"
        )
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise CheckpointError(
                f"{source} does not fit the model: "
                f"{name} is {tuple(tensors[name].shape)} there and "
                f"{tuple(parameter.shape)} here; use the configuration it was trained with"
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Optimiser state as `<kind>.<parameter name>` tensors."""
    return {
        f"{kind}.{name}": value.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]
) -> None:
    """Restore what `optimizer_tensors` gave."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        kind, name = key.split(".", 1)
        if name not in parameters:
            raise CheckpointError(
                f"the optimiser state of {name} has no parameter in this model; "
                f"choose a new run_dir"
            )
        # A fused optimiser keeps its step count beside the parameter.
        optimizer.state[parameters[name]][kind] = value.to(parameters[name].device)


def average_checkpoints(paths: Sequence[Path]) -> dict[str, Tensor]:
    """Arithmetic mean of the parameters of several checkpoints, summed in float64.

    Raises:
        CheckpointError: when one is damaged or they hold different parameters.
    """
    totals: dict[str, Tensor] = {}
    for path in paths:
        tensors = load_weights(path)
        if totals and totals.keys() != tensors.keys():
            raise CheckpointError(
                f"{path} holds other parameters than {paths[0]}; average checkpoints of one run"
            )
        for name, tensor in tensors.items():
            totals[name] = totals[name] + tensor.double() if name in totals else tensor.double()
    return {name: (total / len(paths)).float() for name, total in totals.items()}


def write_average(run_dir: Path, paths: Sequence[Path]) -> Path:
    """Average checkpoints into `average/` of the run folder, in place of an older one."""
    tensors = average_checkpoints(paths)
    target = run_dir / "average"
    fresh = run_dir / "average.new"
    shutil.rmtree(fresh, ignore_errors=True)
    names = {"averaged": [path.name for path in paths]}
    write_folder(
        fresh,
        {
            "model.safetensors": lambda path: save_file(tensors, path),
            "state.json": lambda path: path.write_text(json.dumps(names, indent=1)),
        },
    )
    shutil.rmtree(target, ignore_errors=True)
    os.replace(fresh, target)
    return target


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Verified parameters of a checkpoint or average folder.

    Raises:
        CheckpointError: when it is missing or damaged.
    """
    verify_folder(folder)
    try:
        return load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {folder / 'model.safetensors'}: {error}") from error


def write_folder(folder: Path, files: dict[str, Callable[[Path], object]]) -> None:
    """Write files and their manifest into a new folder that appears whole or not at all.

    Args:
        folder: to be created.
        files: what writes each file, by name.
    """
    temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        manifest = {}
        for name, write in files.items():
            path = temporary / name
            write(path)
            manifest[name] = {"sha256": _sha256(path), "bytes": path.stat().st_size}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        _sync([*(temporary / name for name in files), temporary / MANIFEST, temporary])
        os.replace(temporary, folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"cannot write {folder}: {error.strerror or error}; older checkpoints are intact"
        ) from error
    _sync([folder.parent])


def verify_folder(folder: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        CheckpointError: naming the first file that is missing or differs.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, entry in manifest.items():
            if _sha256(folder / name) != entry["sha256"]:
                raise CheckpointError(
                    f"{folder / name} is damaged: its sha256 is not the one in {MANIFEST}"
                )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder} is no whole checkpoint: {error}") from error


def replace_text(path: Path, text: str) -> None:
    """Write a small file atomically."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    temporary.write_text(text)
    _sync([temporary])
    os.replace(temporary, path)
    _sync([path.parent])


def _folder_name(step: int) -> str:
    return f"step_{step:08d}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(paths: Iterable[Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
