"""Wires objects from configurations: what trains and what translates."""

import copy
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch

from lightconv_mt.config import (
    Device,
    Precision,
    RuntimeConfig,
    TrainRunConfig,
    check_translates,
    load_run_config,
)
from lightconv_mt.data.batching import TokenBatcher
from lightconv_mt.data.corpus import CorpusConfig, read_corpus, read_source
from lightconv_mt.data.encoded import EncodedPairs, encode_corpus
from lightconv_mt.data.tokenizer_base import same_pieces
from lightconv_mt.data.tokenizer_pair import TokenizerPair
from lightconv_mt.decode.long_lines import LongLines
from lightconv_mt.decode.translator import Translator
from lightconv_mt.errors import ConfigError, DataError
from lightconv_mt.model.ensemble import Ensemble
from lightconv_mt.model.transformer import ModelConfig, Seq2SeqTransformer, Tying
from lightconv_mt.ops import resolve_backend
from lightconv_mt.precision import DTYPES, settle_precision
from lightconv_mt.run_folder import (
    check_corpus,
    find_checkpoint,
    find_start,
    lock_run,
    open_run,
    run_tokenizers,
    same_tokenizers,
)
from lightconv_mt.train.checkpoint import (
    CheckpointStore,
    load_model_tensors,
    load_weights,
    write_average,
)
from lightconv_mt.train.distributed import Distributed, join_processes, local_rank
from lightconv_mt.train.loop import Trainer
from lightconv_mt.train.memory import bound_kernel_cache, keep_freed_memory
from lightconv_mt.train.monitor import Monitor, SilentMonitor
from lightconv_mt.train.signals import SignalFlag
from lightconv_mt.train.storage import remove_folder
from lightconv_mt.typed import to_plain
from lightconv_mt.validation import Validator
from lightconv_mt.whole_files import replace_text

logger = logging.getLogger(__name__)

AnyTrainer = TypeVar("AnyTrainer", bound=Trainer)

LONGEST_SOURCE = 1024  # tokens, of models that were trained on whole sources


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


def build_trainer(
    kind: type[AnyTrainer],
    config: TrainRunConfig,
    *,
    tokenizers: TokenizerPair,
    pairs: EncodedPairs,
    device: torch.device,
    distributed: Distributed,
) -> tuple[AnyTrainer, Validator]:
    """Build what trains a run from its beginning, and what scores it.

    Args:
        kind: the class of the trainer.
        config: of the run, its precision settled.
        tokenizers: of the run.
        pairs: the training corpus.
        device: to train on.
        distributed: the processes that train together.

    Raises:
        DataError: when there is nothing to train on, or to validate with.
        CheckpointError: when the weights to start from do not fit.
    """
    precision = DTYPES[config.runtime.precision]
    store = CheckpointStore(Path(config.run_dir), config.checkpoint)
    batcher = build_batcher(config, tokenizers, pairs)
    torch.manual_seed(config.seed)
    model = build_model(config.model, tokenizers, config.runtime)
    if config.start_from is not None and not store.steps():
        start = find_start(config.start_from)
        load_model_tensors(model, load_weights(start), source=start)
        logger.info("starting from %s", start)
    model = model.to(device)
    apart = distributed.holds_parts or config.train.ema > 0.0
    measured = copy.deepcopy(model) if apart else model
    translator = Translator(
        measured,
        tokenizers,
        device=device,
        precision=precision,
        max_source_tokens=_source_limit(config),
    )
    validator = build_validator(config, translator, distributed)
    trainer = kind(
        model,
        batcher,
        loop=config.train,
        optim=config.optim,
        schedule=config.schedule,
        store=store,
        validate=validator,
        device=device,
        precision=precision,
        seed=config.seed,
        distributed=distributed,
        measured=measured if apart else None,
        compiled=config.runtime.compile,
    )
    return trainer, validator


def build_validator(
    config: TrainRunConfig, translator: Translator, distributed: Distributed
) -> Validator:
    """Build what scores a translator's model on the validation set of a run.

    Raises:
        DataError: when that set is empty.
        ConfigError: when BLEU of the target language cannot be had.
    """
    assert config.data.valid is not None
    held_out = list(read_source(config.data.valid, config.data))
    if not held_out:
        raise DataError("data.valid has no sentence pair; give some, training is judged by them")
    return Validator(
        translator,
        held_out,
        batch=config.batch,
        decode=config.decode,
        label_smoothing=config.train.label_smoothing,
        num_samples=config.train.num_samples,
        tgt_lang=config.data.tgt_lang,
        distributed=distributed,
    )


def build_batcher(
    config: TrainRunConfig, tokenizers: TokenizerPair, pairs: EncodedPairs
) -> TokenBatcher:
    """Build what gives a run its batches."""
    return TokenBatcher(
        pairs,
        config.batch,
        tokenizers=tokenizers,
        seed=config.seed,
        sampling=config.tokenizer.sampling,
        weights=[source.weight for source in config.data.train.values()],
        temperature=config.data.temperature,
    )


def start_runtime(config: RuntimeConfig) -> torch.device:
    """Set threads and memory behaviour; the device to compute on.

    Raises:
        ConfigError: when a GPU is asked for and there is none, or fp16 without one.
    """
    if config.keep_memory and keep_freed_memory():
        logger.debug("glibc keeps freed memory")
    bound_kernel_cache()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = choose_device(config)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if config.precision is Precision.fp16 and device.type == "cpu":
        raise ConfigError("runtime.precision=fp16 needs a GPU; set fp32 or bf16")
    return device


def choose_device(config: RuntimeConfig) -> torch.device:
    """The device that `runtime.device` names.

    Raises:
        ConfigError: when a GPU is asked for and there is none, or fewer than processes.
    """
    gpu = torch.cuda.is_available()
    if config.device is Device.cuda and not gpu:
        raise ConfigError(
            "runtime.device=cuda, but torch sees no GPU; set runtime.device=cpu, "
            "or install torch for CUDA"
        )
    if not gpu or config.device is Device.cpu:
        return torch.device("cpu")
    if local_rank() >= torch.cuda.device_count():
        raise ConfigError(
            f"torchrun started process {local_rank()} on a machine of "
            f"{torch.cuda.device_count()} GPUs; lower --nproc-per-node, or set runtime.device=cpu"
        )
    return torch.device("cuda", local_rank())


def build_model(
    config: ModelConfig, tokenizers: TokenizerPair, runtime: RuntimeConfig
) -> Seq2SeqTransformer:
    """Build the model for the vocabularies.

    Raises:
        ConfigError: when it cannot be, for instance as tying=all meets two vocabularies.
    """
    if config.tying is Tying.all and not same_pieces(tokenizers.src, tokenizers.tgt):
        raise ConfigError(
            "model.tying=all needs one vocabulary, but ids of the source and the target mean "
            "different pieces; set tokenizer.vocabulary=joint, give tokenizer.src_model alone, "
            "or set model.tying=decoder"
        )
    return Seq2SeqTransformer(
        config,
        src_vocab_size=tokenizers.src.vocab_size,
        tgt_vocab_size=tokenizers.tgt.vocab_size,
        src_pad_id=tokenizers.src.ids.pad,
        tgt_pad_id=tokenizers.tgt.ids.pad,
        backend=resolve_backend(runtime.kernels, device=choose_device(runtime)),
    )


def load_translator(
    run_dir: str | Sequence[str],
    checkpoint: str,
    runtime: RuntimeConfig,
    max_source_tokens: int | None = None,
    long_lines: LongLines | None = None,
    channel: Sequence[str] = (),
) -> Translator:
    """Open a run folder, or several as an ensemble, for translation.

    Args:
        run_dir: of a training run, or of several with the same tokenizers.
        checkpoint: auto (average, else best, else last), average, best, last, or a step.
        runtime: where and how precisely to compute.
        max_source_tokens: longer sources are cut; None cuts them as in training, or at 1,024.
        long_lines: how; None truncates them where training did, else splits them.
        channel: run folder of a model that translates back, or several, for decode.channel_weight.

    Raises:
        CheckpointError: when there is no such checkpoint, it is damaged, or tokenizers differ.
    """
    check_translates(runtime.precision)
    device = start_runtime(runtime)
    folders = [Path(each) for each in ([run_dir] if isinstance(run_dir, str) else run_dir)]
    if not folders:
        raise ConfigError("run_dir is an empty list; give a run folder, or several")
    configs = [load_run_config(folder) for folder in folders]
    tokenizers = same_tokenizers(folders, configs)
    models = []
    for folder, config in zip(folders, configs, strict=True):
        model = build_model(config.model, tokenizers, runtime)
        weights = find_checkpoint(folder, checkpoint, config)
        load_model_tensors(model, load_weights(weights), source=weights)
        logger.info("model: %s", weights)
        models.append(model.to(device).eval())
    if long_lines is None:
        was_cut = any(config.batch.truncate_source is not None for config in configs)
        long_lines = LongLines.truncate if was_cut else LongLines.split
    return Translator(
        models[0] if len(models) == 1 else Ensemble(models),
        tokenizers,
        device=device,
        precision=DTYPES[runtime.precision],
        max_source_tokens=max_source_tokens or min(map(_source_limit, configs)),
        long_lines=long_lines,
        run_dir=folders[0],
        channel=_load_channel(channel, configs[0].data, runtime) if channel else None,
    )


def _load_channel(
    folders: Sequence[str], forth: CorpusConfig, runtime: RuntimeConfig
) -> Translator:
    """What translates back; where its languages are others, a warning says so."""
    back = load_run_config(folders[0]).data
    if (back.src_lang, back.tgt_lang) != (forth.tgt_lang, forth.src_lang):
        logger.warning(
            "channel=%s was trained from %s to %s; from %s to %s is expected",
            folders[0],
            *(back.src_lang, back.tgt_lang, forth.tgt_lang, forth.src_lang),
        )
    return load_translator(folders, "auto", runtime)


def _source_limit(config: TrainRunConfig) -> int:
    """Tokens of a source, EOS included, that the run's model is given."""
    kept = config.batch.truncate_source
    return LONGEST_SOURCE if kept is None else kept + 1


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
