"""BLEU, chrF and TER by sacrebleu, ROUGE beside them, with signatures; test sets by name."""

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from lightconv_mt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

METRICS = ("bleu", "chrf", "ter")
ROUGES = ("rouge1", "rouge2", "rougeL")
DOWNLOAD_TIMEOUT_SECONDS = 30.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Score:
    """One figure and how it was computed.

    Attributes:
        name: as sacrebleu spells it: BLEU, chrF2, TER; ROUGE-1 and the like.
        value: unrounded, 0 to 100 (TER may exceed 100).
        signature: sacrebleu's, or one in its form, with the version of what computed it.
        mean: of the bootstrap resamples; None where there are none.
        interval: half the width of their 95 % confidence interval.
        p_value: of the difference to another system; None where there is none.
    """

    name: str
    value: float
    signature: str
    mean: float | None = None
    interval: float | None = None
    p_value: float | None = None

    @property
    def text(self) -> str:
        """The figure to two decimals, its interval if there is one, and the signature."""
        interval = f" ({self.interval_text})" if self.mean is not None else ""
        return f"{self.name} = {self.value:.2f}{interval} {self.signature}"

    @property
    def interval_text(self) -> str:
        """Mean and interval in sacrebleu's words; empty where there are none."""
        return f"μ = {self.mean:.2f} ± {self.interval:.2f}" if self.mean is not None else ""


def score(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    metrics: Sequence[str] = METRICS,
    tokenize: str | None = None,
    lowercase: bool = False,
    tgt_lang: str | None = None,
    resamples: int = 0,
) -> list[Score]:
    """Score a corpus as the sacrebleu command does, and by ROUGE.

    Args:
        hypotheses: one detokenised line a sentence.
        references: one or more streams of as many lines.
        metrics: of bleu, chrf, ter, rouge1, rouge2 and rougeL; the scores come in this order.
        tokenize: BLEU's tokenizer; None leaves it to sacrebleu, which goes by tgt_lang (zh, ja and
            ko have their own) and otherwise takes 13a.
        lowercase: BLEU regardless of case; as in the command, chrF stays cased and TER never is.
        tgt_lang: language code of the references.
        resamples: of the bootstrap that gives each score its interval; 0 gives none.

    Raises:
        ConfigError: when a metric or tokenizer does not exist or is not installed.
        DataError: when line counts differ or there is nothing to score.
    """
    with joined_warnings():
        built = build_metrics(metrics, tokenize=tokenize, lowercase=lowercase, tgt_lang=tgt_lang)
        return score_by(built, hypotheses, references, resamples=resamples)


def score_by(
    metrics: Sequence["Metric"],
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    resamples: int = 0,
) -> list[Score]:
    """Score a corpus by metrics of sacrebleu's kind; arguments and errors as of `score`.

    The interval is that of `sacrebleu --confidence`, seeded as there by SACREBLEU_SEED.
    """
    check_streams(hypotheses, references)
    # The command strips line ends in the same way before it scores.
    outputs = [line.rstrip() for line in hypotheses]
    streams = [[line.rstrip() for line in stream] for stream in references]
    return [metric_score(metric, outputs, streams, resamples=resamples) for metric in metrics]


def build_metrics(
    names: Sequence[str],
    *,
    tokenize: str | None = None,
    lowercase: bool = False,
    tgt_lang: str | None = None,
) -> list["Metric"]:
    """The metrics of some names; arguments and errors as of `score`."""
    unknown = [name for name in names if name not in METRICS + ROUGES]
    if unknown or not names:
        raise ConfigError(
            f"metrics has {unknown or 'no entry'}; choose from {', '.join(METRICS + ROUGES)}"
        )
    return [
        build_metric(name, tokenize=tokenize, lowercase=lowercase, tgt_lang=tgt_lang)
        for name in names
    ]


def check_streams(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raise DataError unless there is something to score, and line counts agree."""
    if not hypotheses or not references:
        missing = "hypotheses" if not hypotheses else "references"
        raise DataError(f"there are no {missing} to score; give at least one line of each")
    for number, stream in enumerate(references, 1):
        if len(stream) != len(hypotheses):
            name = f"reference {number}" if len(references) > 1 else "the reference"
            raise DataError(
                f"{len(hypotheses):,} hypotheses do not fit the {len(stream):,} lines of {name}; "
                f"give files with one line for each sentence"
            )


def build_metric(
    name: str,
    *,
    tokenize: str | None = None,
    lowercase: bool = False,
    tgt_lang: str | None = None,
    effective_order: bool = False,
) -> "Metric":
    """One metric.

    Args:
        name: of METRICS or ROUGES.
        tokenize: as of `score`.
        lowercase: as of `score`.
        tgt_lang: as of `score`.
        effective_order: BLEU leaves out orders without n-grams, as fits single sentences.

    Raises:
        ConfigError: when the tokenizer does not exist, or a library is not installed.
    """
    from sacrebleu import BLEU, CHRF, TER

    if name in ROUGES:
        from lightconv_mt.rouge import Rouge

        return Rouge(name)
    if name == "chrf":
        return CHRF()
    if name == "ter":
        return TER()
    if tokenize is not None and tokenize not in BLEU.TOKENIZERS:
        raise ConfigError(
            f"tokenize is {tokenize!r}; choose from {', '.join(BLEU.TOKENIZERS)}, or null for the "
            f"target language's own"
        )
    try:
        return BLEU(
            lowercase=lowercase,
            tokenize=tokenize,
            trg_lang=tgt_lang or "",
            effective_order=effective_order,
        )
    except (RuntimeError, ImportError, OSError) as error:
        wanted = f"tokenize={tokenize}" if tokenize else f"the BLEU tokenizer of {tgt_lang!r}"
        raise ConfigError(
            f"{wanted} cannot be used ({' '.join(str(error).split())}); make it available; "
            f"lcmt-eval takes tokenize=char or tokenize=13a too"
        ) from error


def metric_score(
    metric: "Metric",
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    resamples: int = 0,
) -> Score:
    """What a metric of sacrebleu gives, with its signature; `resamples` as of `score`."""
    result = metric.corpus_score(hypotheses, references, n_bootstrap=resamples or 1)
    signature = metric.get_signature().format()
    interval = (float(result._mean), float(result._ci)) if resamples else (None, None)
    return Score(result.name, float(result.score), signature, *interval)


@contextmanager
def joined_warnings() -> Iterator[None]:
    """Join what sacrebleu warns of (input that looks tokenised) into one warning of ours."""
    messages: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        # Its advice on the `force` parameter is not for our users.
        if record.levelno >= logging.WARNING and "`force`" not in record.getMessage():
            messages.append(" ".join(record.getMessage().split()))
        return False

    source = logging.getLogger("sacrebleu")
    source.addFilter(collect)
    try:
        yield
    finally:
        source.removeFilter(collect)
        if messages:
            logger.warning("sacrebleu: %s", " ".join(dict.fromkeys(messages)))


def load_test_set(name: str, langpair: str) -> tuple[list[str], list[list[str]]]:
    """Read a test set sacrebleu knows, from its cache ($SACREBLEU or ~/.sacrebleu) or the network.

    Args:
        name: such as wmt14/full.
        langpair: such as en-de.

    Returns:
        The source lines and one or more reference streams.

    Raises:
        ConfigError: when sacrebleu does not know the set or the pair.
        DataError: when it is neither cached nor to be had, or its files do not fit together.
    """
    from sacrebleu import DATASETS, SACREBLEU_DIR, get_reference_files, get_source_file

    if name not in DATASETS:
        near = get_close_matches(name, DATASETS, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ConfigError(
            f"test_set is {name!r}, which sacrebleu does not know; {hint}`sacrebleu --list` lists "
            f"them, and src= and ref= take files"
        )
    pairs = DATASETS[name].langpairs
    if langpair not in pairs:
        raise ConfigError(
            f"langpair is {langpair!r}, but test_set={name} has {', '.join(sorted(pairs))}"
        )
    try:
        with _patience(DOWNLOAD_TIMEOUT_SECONDS):
            src = _read(get_source_file(name, langpair))
            references = [_read(path) for path in get_reference_files(name, langpair)]
    except (Exception, SystemExit) as error:  # sacrebleu raises bare Exception and calls sys.exit
        folder = os.path.join(SACREBLEU_DIR, *name.split("/"))
        raise DataError(
            f"test set {name} {langpair} is not in sacrebleu's cache and cannot be fetched "
            f"({' '.join(str(error).split())}); fill {folder} (or point SACREBLEU at a filled "
            f"cache), or give the text itself with src= and ref="
        ) from error
    for stream in references:
        if len(stream) != len(src):
            raise DataError(
                f"test set {name} {langpair} has {len(src):,} source lines but {len(stream):,} "
                f"reference lines; remove {os.path.join(SACREBLEU_DIR, *name.split('/'))} and retry"
            )
    return src, references


def _read(path: str) -> list[str]:
    with open(path, encoding="utf-8", newline="\n") as file:
        return [line.rstrip() for line in file]


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Bound how long a silent network may keep a download waiting; sacrebleu sets no bound."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
