"""A training run from start, or where it stands, to its end: what lcmt-train does."""

import json
import logging
from pathlib import Path

import torch

from lightconv_mt.assemble import build_trainer, start_runtime
from lightconv_mt.config import TrainRunConfig
from lightconv_mt.data.corpus import read_corpus
from lightconv_mt.data.encoded import encode_corpus
from lightconv_mt.precision import settle_precision
from lightconv_mt.run_folder import check_corpus, lock_run, open_run, run_tokenizers
from lightconv_mt.train.checkpoint import (
    CheckpointStore,
    load_model_tensors,
    load_weights,
    write_average,
)
from lightconv_mt.train.distributed import Distributed, join_processes
from lightconv_mt.train.loop import Trainer
from lightconv_mt.train.monitor import Monitor, SilentMonitor
from lightconv_mt.train.signals import SignalFlag
from lightconv_mt.train.storage import remove_folder
from lightconv_mt.typed import to_plain
from lightconv_mt.validation import Validator
from lightconv_mt.whole_files import replace_text

logger = logging.getLogger(__name__)


def train(config: TrainRunConfig) -> int:
    """Train from where the run folder stands, to the end or a signal; returns the exit code."""
    device = start_runtime(config.runtime)
    runtime, run_dir = config.runtime, Path(config.run_dir)
    with join_processes(runtime.parallel, device, runtime.timeout_seconds) as distributed:
        if distributed.is_main:
            with lock_run(run_dir):
                return _train(run_dir, config, device, distributed)
        logging.getLogger("lightconv_mt").setLevel(logging.ERROR)
        return _train(run_dir, config, device, distributed)


def _train(
    run_dir: Path, config: TrainRunConfig, device: torch.device, distributed: Distributed
) -> int:
    config = settle_precision(run_dir, config, device, distributed)
    with distributed.main_first():
        if distributed.is_main:
            open_run(run_dir, config)
        tokenizers = run_tokenizers(run_dir, config)
        corpus = read_corpus(config.data)
        pairs = encode_corpus(corpus, tokenizers)
        check_corpus(run_dir, config, pairs.corpus_digest, save=distributed.is_main)
    for line in corpus.report.lines():
        logger.info("data: %s", line)
    trainer, validator = build_trainer(
        Trainer,
        config,
        tokenizers=tokenizers,
        pairs=pairs,
        device=device,
        distributed=distributed,
    )
    for line in trainer.batcher.report():
        logger.info("data: %s", line)
    logger.info(
        "model: %s parameters",
        f"{sum(parameter.numel() for parameter in trainer.model.parameters()):,}",
    )
    trainer.resume()
    if trainer.finished() and (run_dir / "bleu.json").exists():
        logger.info("%s is finished; nothing to do", run_dir)
        return 0
    if distributed.is_main:
        (run_dir / "bleu.json").unlink(missing_ok=True)  # of a former end, which this goes beyond
    state = trainer.state
    monitor = (
        Monitor(
            run_dir,
            step=state.step,
            lines=state.metric_lines,
            max_steps=config.train.max_steps,
            on_failure=config.checkpoint.on_failure,
        )
        if distributed.is_main
        else SilentMonitor()
    )
    with SignalFlag() as signals:
        trainer.run(monitor, signals)
        monitor.close()
        if signals.received:
            logger.info(
                "stopped at step %d; the same command goes on from there", trainer.state.step
            )
            return signals.exit_code
    _finish(run_dir, config, trainer.store, validator, distributed)
    return 0


def _finish(
    run_dir: Path,
    config: TrainRunConfig,
    store: CheckpointStore,
    validator: Validator,
    distributed: Distributed,
) -> None:
    """Average the last checkpoints, score the result on the validation set, write bleu.json."""
    results = {}
    model = validator.model.eval()
    distributed.wait()  # until the main process has saved what all read
    if config.checkpoint.average_last:
        paths = store.last_whole(config.checkpoint.average_last)
        folder = run_dir / "average"
        with distributed.main_first():
            if distributed.is_main:
                write_average(run_dir, paths)
        load_model_tensors(model, load_weights(folder), source=folder)
        averaged = validator.score(validator.translate())
        logger.info("average of the last %d checkpoints, validation: %s", len(paths), averaged.text)
        results["average"] = {
            "checkpoints": len(paths),
            "bleu": averaged.value,
            "signature": averaged.signature,
        }
    elif distributed.is_main and (run_dir / "average").exists():
        remove_folder(run_dir / "average")  # of a former end
    best = store.best_step()
    if best is not None:
        load_model_tensors(model, load_weights(store.path(best)), source=store.path(best))
        single = validator.score(validator.translate())
        logger.info("best checkpoint (step %d), validation: %s", best, single.text)
        results["best"] = {"step": best, "bleu": single.value, "signature": single.signature}
    results["decode"] = to_plain(config.decode)
    if distributed.is_main:
        replace_text(run_dir / "bleu.json", json.dumps(results, indent=1) + "\n")
