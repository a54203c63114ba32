"""Ways to have a process die at a chosen moment; called in a child, before what it is to do."""

import itertools
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightconv_mt import training, whole_files
from lightconv_mt.data import chunks
from lightconv_mt.decode.translator import Translator
from lightconv_mt.train.checkpoint import CheckpointStore
from lightconv_mt.train.loop import Trainer

KILLED = 137

# Of a training: what is about to be called, of whom, and when.
MOMENTS: dict[str, tuple[Any, str, Callable[[Any], bool]]] = {
    "before the first save": (Trainer, "_step", lambda trainer: trainer.state.step == 2),
    "in the middle of an epoch": (
        Trainer,
        "_step",
        lambda trainer: trainer.state.epoch == 1 and trainer.state.index == 3,
    ),
    "at the last batch of an epoch": (
        Trainer,
        "_step",
        lambda trainer: trainer.state.index == trainer.batcher.num_batches(0) - 1,
    ),
    "at the end of an epoch": (
        Trainer,
        "_step",
        lambda trainer: trainer.state.epoch == 2 and trainer.state.index == 0,
    ),
    "at the last step": (Trainer, "_step", lambda trainer: trainer.state.step == 59),
    "in a validation": (Translator, "translate", lambda translator: True),
    "between the best checkpoint and its name": (
        CheckpointStore,
        "name_best",
        lambda store: 20 in store.steps(),
    ),
    "in averaging": (training, "write_average", lambda run_dir: True),
    "after averaging": (training, "replace_text", lambda path: True),
}


def die_at_moment(moment: str) -> None:
    """Be killed at one of `MOMENTS`."""
    owner, name, when = MOMENTS[moment]
    original = getattr(owner, name)

    def fatal(*arguments: Any, **values: Any) -> Any:
        if when(arguments[0]):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **values)

    setattr(owner, name, fatal)


def die_at_action(number: int) -> None:
    """End right before the nth change to the disk that `whole_files` announces."""
    whole_files.announce = _ending_at(number)


def die_at_change(number: int) -> None:
    """End right before or after a change to the disk by `corpus_translation`, the nth of these."""
    count = _ending_at(number)

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            count()
            result = function(*arguments, **options)
            count()
            return result

        return wrapped

    chunks._sync = dying(chunks._sync)
    os.replace = dying(os.replace)
    Path.replace = dying(Path.replace)  # type: ignore[method-assign]
    shutil.rmtree = dying(shutil.rmtree)
    os.unlink = dying(os.unlink)


def _ending_at(number: int) -> Callable[..., None]:
    """A function that ends the process when it is called for the nth time, counted from 0."""
    countdown = itertools.count()

    def count(*arguments: Any) -> None:
        if next(countdown) == number:
            os._exit(KILLED)

    return count
