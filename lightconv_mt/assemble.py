"""Wires objects from configurations: what trains, what scores, what a model computes on."""

import copy
import logging
from pathlib import Path
from typing import TypeVar

import torch

from lightconv_mt.config import Device, Precision, RuntimeConfig, TrainRunConfig
from lightconv_mt.data.batching import TokenBatcher
from lightconv_mt.data.corpus import read_source
from lightconv_mt.data.encoded import EncodedPairs
from lightconv_mt.data.tokenizer_base import same_pieces
from lightconv_mt.data.tokenizer_pair import TokenizerPair
from lightconv_mt.decode.translator import Translator
from lightconv_mt.errors import ConfigError, DataError
from lightconv_mt.model.transformer import ModelConfig, Seq2SeqTransformer, Tying
from lightconv_mt.ops import resolve_backend
from lightconv_mt.precision import DTYPES
from lightconv_mt.run_folder import find_start
from lightconv_mt.train.checkpoint import CheckpointStore, load_model_tensors, load_weights
from lightconv_mt.train.distributed import Distributed, local_rank
from lightconv_mt.train.loop import Trainer
from lightconv_mt.train.memory import bound_kernel_cache, keep_freed_memory
from lightconv_mt.validation import Validator

logger = logging.getLogger(__name__)

AnyTrainer = TypeVar("AnyTrainer", bound=Trainer)

LONGEST_SOURCE = 1024  # tokens, of models that were trained on whole sources


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
        max_source_tokens=source_limit(config),
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


def source_limit(config: TrainRunConfig) -> int:
    """Tokens of a source, EOS included, that the run's model is given."""
    kept = config.batch.truncate_source
    return LONGEST_SOURCE if kept is None else kept + 1
