"""Entry points: compose the configuration, check it without torch, assemble, run, exit code."""

import logging
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from lightconv_mt import __version__
from lightconv_mt.errors import LcmtError, MemoryLimitError, is_out_of_memory

# Command, named as its primary config -> class of its configuration.
ROOTS = {
    "prepare": "PrepareConfig",
    "train": "TrainRunConfig",
    "translate": "TranslateConfig",
    "eval": "EvalConfig",
}

SIGNALLED = 128  # exit codes above it say which signal stopped a run


def prepare() -> int:
    """Run `lcmt-prepare`; returns the exit code."""
    return main("prepare", sys.argv[1:])


def train() -> int:
    """Run `lcmt-train`; returns the exit code."""
    return main("train", sys.argv[1:])


def translate() -> int:
    """Run `lcmt-translate`; returns the exit code."""
    return main("translate", sys.argv[1:])


def evaluate() -> int:
    """Run `lcmt-eval`; returns the exit code."""
    return main("eval", sys.argv[1:])


def main(command: str, arguments: list[str]) -> int:
    """Run a command.

    Args:
        command: prepare, train, translate or eval.
        arguments: the words after its name on the command line.

    Returns:
        0 ok, 1 a defect of this program, 2 configuration, 3 data, 4 checkpoint, 5 divergence,
        6 memory, 7 another process of the run lost, 130 Ctrl-C, 138 and 143 stopped by SIGUSR1
        and SIGTERM, 141 nobody reads the output any more.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logging.getLogger("lightconv_mt").setLevel(logging.INFO)
    try:
        return _guarded(lambda: _compose_and_run(command, arguments))
    except KeyboardInterrupt:
        return 130


def _compose_and_run(command: str, arguments: list[str]) -> int:
    if "--version" in arguments:
        sys.stdout.write(f"lightconv_mt {__version__}\n")
        return 0
    # Imported here, so that Ctrl-C ends quietly from the first moment on.
    from lightconv_mt.compose import compose
    from lightconv_mt.schemas import read_root
    from lightconv_mt.typed import build_typed

    root, registers = read_root(ROOTS[command])
    configs = compose(command, arguments, root=root, registers=registers)
    for plain in configs:  # all of them before the first runs, and before torch is imported
        build_typed(root, plain, registers=registers)
    worst = 0
    for plain in configs:
        code = _guarded(partial(_run, command, plain))
        worst = max(worst, code)
        if code > SIGNALLED:  # it asks all of a sweep to stop
            break
    return worst


def _run(command: str, plain: dict[str, Any]) -> int:
    from lightconv_mt import config

    if command == "prepare":
        from lightconv_mt.preparation import prepare_data

        return prepare_data(config.to_typed(config.PrepareConfig, plain))
    if command == "eval":
        from lightconv_mt.evaluation.command import evaluate

        return evaluate(config.to_typed(config.EvalConfig, plain))
    if command == "translate":
        from lightconv_mt.corpus_translation import translate

        return translate(config.to_typed(config.TranslateConfig, plain))
    run = config.to_typed(config.TrainRunConfig, plain)
    if run.dry_run:
        from lightconv_mt.rehearsal import rehearse

        return rehearse(run)
    from lightconv_mt.training import train

    return train(run)


def _guarded(function: Callable[[], int]) -> int:
    """Turn errors into exit codes; those a user can fix take one line."""
    try:
        code = function()
        sys.stdout.flush()
        return code
    except LcmtError as error:
        return _tell(error)
    except BrokenPipeError:
        # Python flushes standard output once more at exit, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if is_out_of_memory(error):
            cause = str(error).partition("DefaultCPUAllocator: ")[2] or str(error) or "no memory"
            return _tell(
                MemoryLimitError(
                    f"{cause}; free some, or lower what fills it: the tokens of a batch "
                    f"(max_tokens, batch.max_tokens), the beam, the model"
                )
            )
        traceback.print_exc()
        return 1


def _tell(error: LcmtError) -> int:
    """Print an error as one line; returns its exit code."""
    sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
    return error.exit_code
