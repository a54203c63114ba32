"""Root configurations: what each command needs to know, joined from the parts' own dataclasses."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from lightconv_mt.data.batching import BatchConfig
from lightconv_mt.data.corpus import CorpusConfig
from lightconv_mt.data.tokenizer import TokenizerConfig, Vocabulary
from lightconv_mt.decode.config import MAX_SEED, DecodeConfig
from lightconv_mt.decode.long_lines import LongLines
from lightconv_mt.errors import CheckpointError, ConfigError
from lightconv_mt.evaluation.contradictions import channel_alone, contradiction, overwritten
from lightconv_mt.mixers import MIXERS, MixerConfig
from lightconv_mt.model.transformer import ModelConfig, Tying
from lightconv_mt.ops.dispatch import Backend
from lightconv_mt.train.checkpoint import CheckpointConfig
from lightconv_mt.train.config import LoopConfig
from lightconv_mt.train.distributed import Parallel
from lightconv_mt.train.optim import OptimConfig
from lightconv_mt.train.schedule import SCHEDULES, ScheduleConfig
from lightconv_mt.typed import Registers, build_typed, read_yaml

Root = TypeVar("Root")

MAX_THREADS = 1024

# Config groups whose options are classes of their own: type of the field, and register by `name`.
REGISTERS: Registers = {
    "model/mixer": (MixerConfig, MIXERS),
    "schedule": (ScheduleConfig, SCHEDULES),
}


class Device(Enum):
    """Where to compute; `auto` takes the GPU if there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(Enum):
    """Number format of the products; parameters and sums stay float32.

    auto is for training: bf16 where the machine multiplies faster in it, else fp32; a run goes on
    in what it began with. int8 is for translation on a CPU: the decoder's weights, each output with
    a scale of its own, times activations rounded as they come.
    """

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"
    int8 = "int8"


class Metric(Enum):
    """SacreBLEU's metrics, and those of summaries."""

    bleu = "bleu"
    chrf = "chrf"
    ter = "ter"
    rouge1 = "rouge1"
    rouge2 = "rouge2"
    rougeL = "rougeL"


class NbestFormat(Enum):
    """How translations are written.

    `text` one line each; `tsv` line number, score and text; `jsonl` an object a line of input.
    """

    text = "text"
    tsv = "tsv"
    jsonl = "jsonl"


class Significance(Enum):
    """How chance is told from a difference: paired bootstrap, or approximate randomization."""

    bootstrap = "bootstrap"
    randomization = "randomization"


class ScoreFormat(Enum):
    """How the likelihood of references is written.

    `tsv` line, reference, log-probability, tokens and perplexity; `jsonl` an object of the same.
    """

    tsv = "tsv"
    jsonl = "jsonl"


@dataclass(kw_only=True)
class RuntimeConfig:
    """The machine's side of a run; no field changes what is computed beyond rounding."""

    device: Device = Device.auto
    precision: Precision = Precision.fp32
    kernels: Backend = Backend.auto
    threads: int | None = None  # None: as many as torch takes
    keep_memory: bool = (
        True  # Linux: the C library keeps freed memory instead of giving it back every step
    )
    compile: bool = False  # training: layers by torch.compile; minutes before the first step
    # Of training with several processes, which torchrun starts.
    parallel: Parallel = Parallel.ddp
    timeout_seconds: float = 600.0  # to wait for a process that does not answer

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise ConfigError(
                f"runtime.threads is {self.threads}; give 1 to {MAX_THREADS}, or null for torch's "
                f"choice"
            )
        if not self.timeout_seconds > 0.0:
            raise ConfigError(
                f"runtime.timeout_seconds is {self.timeout_seconds}; give a positive number"
            )
        if self.compile and self.parallel is Parallel.fsdp:
            raise ConfigError(
                "runtime.compile=true is for whole models, and runtime.parallel=fsdp cuts them up; "
                "set runtime.compile=false, or runtime.parallel=ddp"
            )
        if self.precision is Precision.fp16 and self.parallel is Parallel.fsdp:
            raise ConfigError(
                "runtime.precision=fp16 scales its loss, which needs whole gradients; "
                "set bf16, or runtime.parallel=ddp"
            )
        if self.precision is Precision.fp16 and self.device is Device.cpu:
            raise ConfigError(
                "runtime.precision=fp16 needs a GPU; on runtime.device=cpu set fp32 or bf16"
            )


@dataclass(kw_only=True)
class TrainRunConfig:
    """`lcmt-train`: everything that decides what a training run computes."""

    run_dir: str
    start_from: str | None = None  # a run whose model, tokenizer and weights this one begins with
    seed: int = 1
    dry_run: bool = False  # tells size, memory, time and data of the run; trains nothing
    data: CorpusConfig
    tokenizer: TokenizerConfig
    batch: BatchConfig
    model: ModelConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    train: LoopConfig
    checkpoint: CheckpointConfig
    decode: DecodeConfig  # of the translations made at validation
    runtime: RuntimeConfig

    def __post_init__(self) -> None:
        _check_run_dir(self.run_dir)
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"seed is {self.seed}; give 0 to {MAX_SEED}")
        if self.runtime.precision is Precision.int8:
            raise ConfigError("runtime.precision=int8 is for translation; train with fp32 or bf16")
        if self.data.valid is None:
            raise ConfigError("data.valid is null; training is judged by it, give files or a split")
        if self.decode.shortlist is not None:
            raise ConfigError(
                "decode.shortlist is for translation; leave it out, validation searches the "
                "whole vocabulary"
            )
        if self.decode.channel_weight:
            raise ConfigError(
                "decode.channel_weight is for translation; leave it out, validation has no model "
                "that translates back"
            )
        if self.start_from is not None and not self.start_from.strip():
            raise ConfigError("start_from is empty; give the folder of a run, or leave it out")
        if self.start_from is not None and Path(self.start_from) == Path(self.run_dir):
            raise ConfigError(
                f"run_dir and start_from are both {self.run_dir}; give the new run another folder"
            )
        if self.model.tying is Tying.all and self.tokenizer.vocabulary is Vocabulary.separate:
            raise ConfigError(
                "model.tying=all needs one vocabulary, but tokenizer.vocabulary is separate; "
                "set model.tying=decoder or tokenizer.vocabulary=joint"
            )


@dataclass(kw_only=True)
class PrepareConfig:
    """`lcmt-prepare`: read a corpus once, clean it and keep it as text."""

    out: str
    data: CorpusConfig
    hold_out_every: int | None = None  # of the kept training pairs, for validation; None: none
    part_pairs: int = 200_000  # read between two savings; an interruption costs that many at most

    def __post_init__(self) -> None:
        if not self.out.strip():
            raise ConfigError("out is empty; give a folder for the text, such as out=data/wmt16")
        check_count("part_pairs", self.part_pairs)
        if self.hold_out_every is not None and self.hold_out_every < 2:
            raise ConfigError(
                f"hold_out_every is {self.hold_out_every}; give 2 or more, or null to hold out none"
            )
        if (self.hold_out_every is None) == (self.data.valid is None):
            raise ConfigError(
                "validation data comes from data.valid or from hold_out_every; give one of them, "
                "with hold_out_every=N set data.valid=null"
            )


@dataclass(kw_only=True)
class TranslateConfig:
    """`lcmt-translate`: one line of text in, one line of text out."""

    run_dir: list[str]  # several are an ensemble
    # Of a model that translates back, for decode.channel_weight; several are an ensemble.
    channel: list[str] = field(default_factory=list)
    input: str | None = None  # None: standard input
    output: str | None = None  # None: standard output
    prefix: str | None = None  # a file: what the output of each line is to begin with
    alignments: str | None = None  # a file: for each line, which words the output's words come from
    checkpoint: str = "auto"  # auto (average, else best, else last), average, best, last, or a step
    nbest_format: NbestFormat = NbestFormat.text
    overwrite: bool = False  # whether `output` may be there already
    max_tokens: int = 4096  # of a batch, padding included
    # Of a source the model is given. None: where batch.truncate_source cut them in training, or
    # 1024.
    max_source_tokens: int | None = None
    # What happens to longer lines, which are counted. None: they are truncated where
    # batch.truncate_source did so in training, else split.
    long_lines: LongLines | None = None
    chunk_lines: int = 1000  # read, sorted by length and translated together
    decode: DecodeConfig
    runtime: RuntimeConfig

    def __post_init__(self) -> None:
        for folder in self.run_dir:
            _check_run_dir(folder)
        _check_checkpoint(self.checkpoint)
        _check_positive(self, "max_tokens", "chunk_lines")
        check_source_tokens(self.max_source_tokens)
        _check_translates(self, "lcmt-translate")
        if self.nbest_format is NbestFormat.text and self.decode.nbest > 1:
            raise ConfigError(
                f"decode.nbest is {self.decode.nbest}, but text has one line for each input; "
                f"set nbest_format=tsv or jsonl"
            )
        if self.decode.alignments and not (
            self.alignments is not None or self.nbest_format is NbestFormat.jsonl
        ):
            raise ConfigError(
                "decode.alignments is true, but nothing would hold them; "
                "give alignments=FILE or nbest_format=jsonl"
            )
        read, written = (
            [(key, getattr(self, key)) for key in keys]
            for keys in (("input", "prefix"), ("output", "alignments"))
        )
        for message in (*channel_alone(self), *overwritten(read, written)):
            raise ConfigError(message)


@dataclass(kw_only=True)
class EvalConfig:
    """`lcmt-eval`: score translations that runs make, or that files hold, against references.

    What is scored: `hyp` against `ref`; a run's translations of `src` against `ref`; of `test_set`;
    or, with `run_dir` alone, of the test set of the run's own configuration. Several files or runs
    are compared with the first; an ensemble is scored by its translations, as a file.
    """

    run_dir: list[str] = field(default_factory=list)
    channel: list[str] = field(default_factory=list)  # as in TranslateConfig
    src: str | None = None
    ref: list[str] = field(default_factory=list)  # one file for each reference
    hyp: list[str] = field(default_factory=list)  # one file for each system
    test_set: str | None = None  # SacreBLEU's name, such as wmt14/full
    langpair: str | None = None  # of test_set or of ref, such as en-de
    metrics: list[Metric] = field(default_factory=lambda: [Metric.bleu, Metric.chrf, Metric.ter])
    tokenize: str | None = None  # None: SacreBLEU's choice for the metric and language
    lowercase: bool = False
    paper_scoring: bool = False  # BLEU of Moses' words besides, with and without compounds split
    allow_tokenized: bool = False  # score text that looks tokenised all the same
    confidence: bool = False  # mean and 95 % interval of one system; several always have them
    significance: Significance = Significance.bootstrap  # of several systems' differences
    resamples: int = 1000  # of the bootstrap
    by_length: bool = False  # scores by length of the source, else of the reference
    worst: int = 0  # sentences to show, by sentence chrF if that is a metric, else the first metric
    latency: bool = False  # translates sentences one by one besides, and times them
    latency_sentences: int = 200  # at most, spread over the test set
    score: bool = False  # how likely the run finds each reference, instead of translating
    score_format: ScoreFormat = ScoreFormat.tsv
    output: list[str] = field(default_factory=list)  # takes the translations: a file for each run
    json: str | None = None  # writes the scores
    checkpoint: str = "auto"
    max_tokens: int = 4096
    max_source_tokens: int | None = None
    decode: DecodeConfig
    runtime: RuntimeConfig

    def __post_init__(self) -> None:
        _check_checkpoint(self.checkpoint)
        _check_positive(self, "max_tokens", "latency_sentences")
        check_source_tokens(self.max_source_tokens)
        _check_translates(self, "lcmt-eval")
        found = contradiction(self)
        if found is not None:
            raise ConfigError(found)


def to_typed(root: type[Root], plain: dict[str, Any]) -> Root:
    """Build a root configuration from plain values; `name` picks the class of mixer and schedule.

    Raises:
        ConfigError: on an unknown key (naming the nearest), a missing or mistyped value, or values
            that contradict each other.
    """
    return build_typed(root, plain, registers=REGISTERS)


def check_count(name: str, count: int) -> None:
    """Raise ConfigError unless it is a number of 1 or more."""
    if not isinstance(count, int) or count < 1:
        raise ConfigError(f"{name} is {count!r}; give a whole number of 1 or more")


def check_source_tokens(limit: int | None) -> None:
    """Raise ConfigError for a `max_source_tokens` that leaves no room for a source."""
    if limit is not None and (not isinstance(limit, int) or limit < 2):
        raise ConfigError(
            f"max_source_tokens is {limit!r}; give 2 or more, of which EOS is one, or null"
        )


def load_run_config(run_dir: str | Path) -> TrainRunConfig:
    """Read the configuration a run was trained with from its folder; runs no code of it.

    Raises:
        CheckpointError: when there is none, or it does not fit this version of the library.
    """
    path = Path(run_dir) / "config.yaml"
    if not path.is_file():
        raise CheckpointError(
            f"{run_dir} is no run folder: it has no config.yaml; give the run_dir of a training run"
        )
    try:
        return to_typed(TrainRunConfig, read_yaml(path))
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _check_run_dir(run_dir: str) -> None:
    if not run_dir.strip():
        raise ConfigError(
            "run_dir is empty; give the folder of the run, such as run_dir=runs/first"
        )


def _check_checkpoint(checkpoint: str) -> None:
    if checkpoint not in ("auto", "average", "best", "last") and not (
        checkpoint.isascii() and checkpoint.isdigit()
    ):
        raise ConfigError(
            f"checkpoint is {checkpoint!r}; give auto, average, best, last or a step number"
        )


def _check_positive(config: TranslateConfig | EvalConfig, *keys: str) -> None:
    for key in keys:
        check_count(key, getattr(config, key))


def check_translates(precision: Precision) -> None:
    """Raise ConfigError for a precision that translation does not have."""
    if precision is Precision.auto:
        raise ConfigError(
            "runtime.precision=auto is for training; translate with fp32, bf16, fp16 or int8"
        )


def _check_translates(config: TranslateConfig | EvalConfig, command: str) -> None:
    check_translates(config.runtime.precision)
    if config.runtime.compile:
        raise ConfigError(
            f"runtime.compile=true compiles the layers for training, and {command} trains nothing; "
            f"leave it out, or set runtime.compile=false"
        )
