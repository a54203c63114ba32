"""fairseq's checkpoint files, read as data: nothing in them is executed, fairseq is not needed."""

import pickle
import re
import zipfile
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shown  # of bounded length, whatever a file holds
from typing import Any

import torch
from torch import Tensor

from lightconv_mt.errors import CheckpointError

# How torch.save began its files until 2020, those of the published models among them.
_OLD_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
# Types of options.
_PLAIN = (type(None), bool, int, float, str, list, tuple, dict)
# Parts of a configuration that are dictionaries of their own since 2021.
_NESTED = ("encoder", "decoder", "quant_noise")


class Leftover:
    """Stands in for what training leaves in a checkpoint and nobody looks at."""

    def __init__(self, *_: object) -> None:
        """Take whatever it would have been made of."""

    def __setstate__(self, _: object) -> None: ...


# fairseq's meters until 2019, and numpy's numbers and arrays of validation scores since.
_LEFT_BEHIND = (
    *(f"fairseq.meters.{name}" for name in ("AverageMeter", "TimeMeter", "StopwatchMeter")),
    *("numpy.ndarray", "numpy.dtype"),
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
)
# What may stand in a checkpoint beside tensors and plain values.
_ALLOWED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    Namespace,
    *((Leftover, name) for name in _LEFT_BEHIND),
]


@dataclass(frozen=True)
class FairseqCheckpoint:
    """What a model's checkpoint says.

    Attributes:
        path: the file.
        fields: options of model and task, as fairseq names them.
        tensors: parameters and buffers under fairseq's names, of any layout and type.
        num_updates: that it was trained for, where it says so.
    """

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, Tensor]
    num_updates: int | None


def read_checkpoint(path: Path) -> FairseqCheckpoint:
    """Read a checkpoint of any fairseq since 2018.

    Args:
        path: `checkpoint_best.pt` or the like.

    Raises:
        CheckpointError: when it is no such file, is damaged, or holds anything but data.
    """
    state = _load(path)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is no checkpoint of fairseq: it holds no dictionary")
    tensors = state.get("model")
    if not isinstance(tensors, dict) or not tensors:
        raise CheckpointError(f"{path} is no checkpoint of fairseq: it has no parameters ('model')")
    for key, value in tensors.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: {shown(key)} in 'model' is {type(value).__name__}, no tensor"
            )
    return FairseqCheckpoint(path, _fields(state, path), dict(tensors), _num_updates(state))


def _load(path: Path) -> Any:
    """The file's content, allowing for `_ALLOWED` alone."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"{path} {what}; give a checkpoint file such as checkpoint_best.pt")
    try:
        with path.open("rb") as file:
            head = file.read(len(_OLD_MAGIC))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    zipped = head.startswith(b"PK\x03\x04")
    if not zipped and head != _OLD_MAGIC:
        raise CheckpointError(f"{path} is no file of torch.save; give a checkpoint of fairseq")
    if zipped:
        _check_archive(path)
    added = [each for each in _ALLOWED if each not in torch.serialization.get_safe_globals()]
    try:
        with torch.serialization.safe_globals(added):
            # Mapped, a storage that claims to be larger than it is ends at the end of the file.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # what broken bytes raise is up to them
        raise CheckpointError(_explain(path, error)) from error


def _check_archive(path: Path) -> None:
    """Refuse archives that are damaged, or that could grow when read.

    Raises:
        CheckpointError: saying which.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise CheckpointError(
                    f"{path} is compressed, which torch.save never does; it is refused"
                )
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise CheckpointError(f"{path} claims to hold more than its size; it is refused")
            damaged = archive.testzip()
    except CheckpointError:
        raise
    except Exception as error:  # as above
        raise CheckpointError(f"{path} is damaged ({error}); fetch it again") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: {damaged} is not as it was; fetch it again")


def _explain(path: Path, error: Exception) -> str:
    """One line for what torch says in many."""
    text = str(error)
    if found := re.search(r"GLOBAL (\S+)", text):
        if found[1].startswith("omegaconf."):
            return (
                f"{path} holds {found[1]}, as fairseq 0.10 left it there; save it with its cfg as "
                f"a plain dictionary, as later versions do"
            )
        return (
            f"{path} holds {found[1]}, which is no data of a fairseq checkpoint; it is refused, "
            f"nothing of it was executed"
        )
    first = " ".join(text.split())[:200] or type(error).__name__
    return f"{path} cannot be read as a checkpoint ({first}); fetch it again"


def _fields(state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Options of model and task: `args` until 2020, `cfg` since."""
    args, cfg = state.get("args"), state.get("cfg")
    if isinstance(args, Namespace):
        return _named(args)
    if isinstance(cfg, dict):
        model, task = _named(cfg.get("model")), _named(cfg.get("task"))
        for part in _NESTED:
            if isinstance(nested := model.pop(part, None), dict):
                model |= {f"{part}_{key}": value for key, value in nested.items()}
        if model:
            described = {"task": task.get("_name"), **task}
            return {"arch": model.get("_name"), **described, **model}
    raise CheckpointError(
        f"{path} does not say how its model is built (neither 'args' nor 'cfg' holds it); "
        f"give a checkpoint as fairseq-train wrote it"
    )


def _named(value: Any) -> dict[str, Any]:
    """What a Namespace or dictionary holds by name; of what is no plain value, its type."""
    items = vars(value) if isinstance(value, Namespace) else value
    if not isinstance(items, dict):
        return {}
    return {
        key: item if isinstance(item, _PLAIN) else f"a {type(item).__name__}"
        for key, item in items.items()
        if isinstance(key, str)
    }


def _num_updates(state: Mapping[str, Any]) -> int | None:
    history = state.get("optimizer_history")
    last = history[-1] if isinstance(history, list) and history else None
    found = last.get("num_updates") if isinstance(last, dict) else None
    return found if type(found) is int else None
