"""What a finished run is worth: parameters, BLEU, speed of training and of decoding."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from lightconv_mt.cli import ROOTS
from lightconv_mt.compose import compose
from lightconv_mt.config import EvalConfig, load_run_config, to_typed
from lightconv_mt.errors import DataError
from lightconv_mt.evaluation.data import read_test_data
from lightconv_mt.run_folder import find_checkpoint
from lightconv_mt.schemas import read_root
from lightconv_mt.scoring import score
from lightconv_mt.train.storage import MANIFEST
from lightconv_mt.trained_run import load_translator
from lightconv_mt.typed import to_plain
from lightconv_mt.whole_files import replace_text

MEASURED = "measured.json"


@dataclass(frozen=True)
class Measurement:
    """Figures of one run.

    Attributes:
        parameters: of the model.
        bleu: on the test set.
        signature: sacrebleu's.
        sentences: of the test set.
        training_tokens_per_second: target tokens, the median of what the run logged.
        decoding_sentences_per_second: one figure for each round over the test set.
    """

    parameters: int
    bleu: float
    signature: str
    sentences: int
    training_tokens_per_second: float
    decoding_sentences_per_second: list[float]


def scoring_config(folder: Path, words: Sequence[str]) -> EvalConfig:
    """What lcmt-eval would do with a run and some words."""
    root, registers = read_root(ROOTS["eval"])
    arguments = [f"run_dir={folder}", "metrics=bleu", *words]
    (plain,) = compose("eval", arguments, root=root, registers=registers)
    return to_typed(EvalConfig, plain)


def measure(folder: Path, config: EvalConfig, *, rounds: int, batch_size: int) -> Measurement:
    """Measure a run, or read what was measured of the same weights in the same way."""
    weights = find_checkpoint(folder, config.checkpoint, load_run_config(folder))
    way = {
        "config": {key: value for key, value in to_plain(config).items() if key != "run_dir"},
        "weights": json.loads((weights / MANIFEST).read_text()),
        "rounds": rounds,
        "batch_size": batch_size,
    }
    kept = _read(folder / MEASURED)
    if kept is not None and kept.pop("way") == way:
        return Measurement(**kept)
    found = _measure(folder, config, rounds, batch_size)
    replace_text(folder / MEASURED, json.dumps({**asdict(found), "way": way}, indent=1) + "\n")
    return found


def _measure(folder: Path, config: EvalConfig, rounds: int, batch_size: int) -> Measurement:
    data = read_test_data(config)
    assert data.src is not None, folder
    translator = load_translator(
        str(folder), config.checkpoint, config.runtime, config.max_source_tokens
    )

    def translate(lines: list[str]) -> list[str]:
        found = translator.translate(
            lines, config.decode, max_tokens=config.max_tokens, batch_size=batch_size
        )
        return [translation.text for translation in found]

    translate(data.src[:batch_size])  # kernels are chosen, memory is taken
    speeds, hypotheses = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        hypotheses = translate(data.src)
        speeds.append(len(hypotheses) / (time.perf_counter() - started))
    (bleu,) = score(
        hypotheses,
        data.references,
        metrics=["bleu"],
        tokenize=config.tokenize,
        lowercase=config.lowercase,
        tgt_lang=data.tgt_lang,
    )
    return Measurement(
        parameters=sum(parameter.numel() for parameter in translator.model.parameters()),
        bleu=bleu.value,
        signature=bleu.signature,
        sentences=len(data.src),
        training_tokens_per_second=training_speed(folder),
        decoding_sentences_per_second=speeds,
    )


def training_speed(folder: Path) -> float:
    """Median of the target tokens a second that a run logged."""
    (speeds,) = logged(folder, "train/tokens_per_second")
    return median(event.value for event in speeds)


def logged(folder: Path, *names: str) -> list[list[Any]]:
    """TensorBoard's events of scalars of a run, times included; metrics.jsonl holds none.

    Raises:
        DataError: when the run has none of such a name.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    if (folder / "tensorboard").is_dir():
        events.Reload()
    for name in names:
        if name not in events.Tags()["scalars"]:
            raise DataError(
                f"{folder / 'tensorboard'} has no {name}, of which speeds and times are made; "
                f"give a run that trained for train.log_every_steps or more, with that folder"
            )
    return [events.Scalars(name) for name in names]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) and "way" in kept else None
