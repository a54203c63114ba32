"""Checkpoints: atomic save, strict load, keep-last-n and keep-best, averaging."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightconv_mt.errors import CheckpointError, ConfigError
from lightconv_mt.train import storage
from lightconv_mt.train.distributed import placed_as, whole
from lightconv_mt.whole_files import replace_text

logger = logging.getLogger(__name__)

# What was trained, and beside it in a checkpoint the moving average that is used instead.
TRAINED, AVERAGED = "model.safetensors", "ema.safetensors"


class OnFailure(Enum):
    """What follows a checkpoint or metric that cannot be written: the run stops, or goes on."""

    stop = "stop"
    go_on = "go_on"


@dataclass(kw_only=True)
class CheckpointConfig:
    """The last n checkpoints and the best are kept; `average_last` are averaged at the end."""

    save_every_steps: int = 1000  # and at every validation, and at the end
    keep_last: int = 10
    average_last: int = 10  # 0: no averaging
    on_failure: OnFailure = OnFailure.stop  # the last save of a run always stops it

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
        ema: moving average of the parameters by name; empty for none.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    ema: dict[str, Tensor] = field(default_factory=dict)


class CheckpointStore:
    """The `checkpoints/` folder of a run: one sub-folder a checkpoint, `best` naming the best."""

    def __init__(self, run_dir: Path, config: CheckpointConfig) -> None:
        """Keep the place; nothing is read or written yet."""
        self.folder, self.config = run_dir / "checkpoints", config

    def remove_leftovers(self) -> None:
        """Remove what an interrupted save left in the run; for the one process that trains here."""
        for parent in (self.folder.parent, self.folder):
            storage.remove_leftovers(parent)

    def save(
        self,
        checkpoint: Checkpoint,
        *,
        best_step: int,
        planned: Callable[[int], bool] = lambda step: True,
    ) -> None:
        """Write a checkpoint whole or not at all, then drop those that are no longer kept.

        Args:
            checkpoint: what to write, in place of an older one of that step.
            best_step: of the best one so far, which may be this; 0 if there is none.
            planned: whether a run that is never interrupted saves at a step; the others, there only
                to go on from, are dropped at the next that is.

        Raises:
            CheckpointError: when it cannot be written; the older ones are intact then.
        """
        path = self.path(checkpoint.step)
        state = json.dumps(checkpoint.state, indent=1)
        # One that is there may be damaged, or saved before a validation that was cut short.
        if not (_is_whole(path) and (path / "state.json").read_text() == state):
            tensors = {TRAINED: checkpoint.model, "optimizer.safetensors": checkpoint.optimizer}
            if checkpoint.ema:
                tensors[AVERAGED] = checkpoint.ema
            storage.write_folder(
                path,
                {
                    **{name: partial(save_file, part) for name, part in tensors.items()},
                    "state.json": lambda file: file.write_text(state),
                },
                size=sum(map(_num_bytes, tensors.values())),
            )
        self.name_best(best_step)  # an older one too: a death may have come before it was named
        steps = self.steps()
        kept = {*list(filter(planned, steps))[-self.config.keep_last :], self.best_step()}
        if not planned(checkpoint.step):
            kept.update(steps[-2:])
        for step in steps:
            if step not in kept:
                storage.remove_folder(self.path(step))

    def name_best(self, step: int) -> None:
        """Have `best` name the checkpoint of a step, if that is here and not named already.

        Raises:
            CheckpointError: when the file cannot be written; the checkpoints are intact then.
        """
        pointer, name = self.folder / "best", _folder_name(step)
        if not (self.folder / name / storage.MANIFEST).is_file():
            return
        try:
            if not pointer.exists() or pointer.read_text(errors="replace") != name:
                replace_text(pointer, name)
        except OSError as error:
            raise CheckpointError(
                f"cannot write {pointer}: {error.strerror or error}; the checkpoints are intact"
            ) from error

    def load_latest(self) -> Checkpoint | None:
        """The newest good checkpoint, or None if there is none yet; bad ones are named in the log.

        Raises:
            CheckpointError: when there are checkpoints and all are damaged.
        """
        steps = sorted(_step_of(path) for path in self.folder.glob("step_*"))
        for step in reversed(steps):
            try:
                return self.load(step)
            except CheckpointError as error:
                logger.warning("%s; taking the one before it", error)
        if steps:
            raise CheckpointError(
                f"all {len(steps)} checkpoints in {self.folder} are damaged; choose a new run_dir"
            )
        return None

    def load(self, step: int) -> Checkpoint:
        """The checkpoint of a step.

        Raises:
            CheckpointError: when it is missing or damaged.
        """
        path = self.path(step)
        storage.verify_folder(path)
        try:
            return Checkpoint(
                step=step,
                model=load_file(path / TRAINED),
                optimizer=load_file(path / "optimizer.safetensors"),
                state=json.loads((path / "state.json").read_text()),
                ema=load_file(path / AVERAGED) if (path / AVERAGED).exists() else {},
            )
        except (OSError, SafetensorError, ValueError) as error:
            raise CheckpointError(f"{path} is no whole checkpoint: {error}") from error

    def last_whole(self, count: int) -> list[Path]:
        """Folders of the newest good checkpoints, so many at most; bad ones are named in the log.

        Raises:
            CheckpointError: when there is none.
        """
        found: list[Path] = []
        for step in reversed(self.steps()):
            if len(found) < count:
                try:
                    storage.verify_folder(self.path(step))
                    found.insert(0, self.path(step))
                except CheckpointError as error:
                    logger.warning("%s; left out", error)
        if not found:
            raise CheckpointError(f"there is no whole checkpoint in {self.folder}")
        return found

    def steps(self) -> list[int]:
        """Steps of the checkpoints here, ascending."""
        return sorted(
            _step_of(path)
            for path in self.folder.glob("step_*")
            if (path / storage.MANIFEST).exists()
        )

    def best_step(self) -> int | None:
        """Step of the best checkpoint so far.

        Raises:
            CheckpointError: when the file that names it is damaged.
        """
        pointer = self.folder / "best"
        if not pointer.exists():
            return None
        name = pointer.read_text(errors="replace")
        if not (self.folder / name / storage.MANIFEST).is_file():
            raise CheckpointError(
                f"{pointer} names no checkpoint ({name[:40]!r}); write the name of the best one's "
                f"folder into it, or remove it"
            )
        return _step_of(Path(name))

    def path(self, step: int) -> Path:
        """Folder of the checkpoint of the given step."""
        return self.folder / _folder_name(step)


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by name, a shared one once, on the CPU and contiguous."""
    return {
        name: whole(parameter.detach()).cpu().contiguous()
        for name, parameter in model.named_parameters()
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
            parameter.copy_(placed_as(tensors[name], parameter))


def copy_parameters(source: nn.Module, target: nn.Module) -> None:
    """Copy parameters, of which this process may hold a part, to a model of the same shape."""
    with torch.no_grad():
        for theirs, ours in zip(source.parameters(), target.parameters(), strict=True):
            ours.copy_(whole(theirs.detach()))


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Optimiser state as `<kind>.<parameter name>` tensors."""
    return {
        f"{kind}.{name}": whole(value.detach()).cpu().contiguous()
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
        parameter = parameters[name]
        # A fused optimiser keeps its step count, a single number, beside the parameter.
        of_parameter = value.shape == parameter.shape
        optimizer.state[parameter][kind] = (
            placed_as(value, parameter) if of_parameter else value
        ).to(parameter.device)


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
    names = {"averaged": [path.name for path in paths]}
    storage.write_folder(
        target,
        {
            TRAINED: partial(save_file, tensors),
            "state.json": lambda path: path.write_text(json.dumps(names, indent=1)),
        },
        size=_num_bytes(tensors),
    )
    return target


def weights_file(folder: Path) -> Path:
    """The parameters that a checkpoint or average folder has for use: the moving average if any."""
    averaged = folder / AVERAGED
    return averaged if averaged.exists() else folder / TRAINED


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Verified parameters for use, of a checkpoint or average folder.

    Raises:
        CheckpointError: when it is missing or damaged.
    """
    storage.verify_folder(folder)
    path = weights_file(folder)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def weights_digest(folder: Path) -> str:
    """sha256 of the parameters for use in a checkpoint or average folder, as its manifest says.

    Raises:
        CheckpointError: when there is no such manifest.
    """
    try:
        manifest = json.loads((folder / storage.MANIFEST).read_text())
        return str(manifest[weights_file(folder).name]["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is no whole checkpoint: {error}") from error


def _folder_name(step: int) -> str:
    return f"step_{step:08d}"


def _step_of(folder: Path) -> int:
    number = folder.name.removeprefix("step_")
    if not number.isdecimal():
        raise CheckpointError(f"{folder} is not a checkpoint of this program; move it elsewhere")
    return int(number)


def _is_whole(folder: Path) -> bool:
    try:
        storage.verify_folder(folder)
    except CheckpointError:
        return False
    return True


def _num_bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
