"""Several systems against the first one: sacrebleu's paired bootstrap and randomization."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from lightconv_mt.errors import ConfigError, DataError
from lightconv_mt.scoring import Score, check_streams

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric
    from sacrebleu.significance import Result

SEED = "SACREBLEU_SEED"


def compare(
    systems: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    metrics: Sequence["Metric"],
    *,
    randomization: bool = False,
    resamples: int = 1000,
) -> list[list[Score]]:
    """Score systems, and test how likely chance alone makes each differ as much from the first.

    The figures are those of `sacrebleu --paired-bs` and `--paired-ar`, seeded by SACREBLEU_SEED.

    Args:
        systems: hypotheses of each, one detokenised line a sentence; the first is the baseline.
        references: one or more streams of as many lines.
        metrics: of sacrebleu's kind.
        randomization: p-values by approximate randomization in 10,000 trials (Riezler and Maxwell,
            2005) instead of the paired bootstrap (Koehn, 2004).
        resamples: of the bootstrap, which also gives mean and interval.

    Returns:
        The scores of each system in the order of the metrics; the baseline has no p-value.

    Raises:
        DataError: when line counts differ, or there is nothing to score or to compare.
    """
    from sacrebleu.significance import PairedTest

    if len(systems) < 2:
        raise DataError("there is one system; give two or more to compare")
    for hypotheses in systems:
        check_streams(hypotheses, references)
    test = PairedTest(
        [("", [line.rstrip() for line in hypotheses]) for hypotheses in systems],
        {str(number): metric for number, metric in enumerate(metrics)},
        [[line.rstrip() for line in stream] for stream in references],
        test_type="ar" if randomization else "bs",
        n_samples=0 if randomization else resamples,
        n_ar_confidence=resamples if randomization else -1,
    )
    signatures, columns = test()
    results = {name: column for name, column in columns.items() if name != "System"}
    return [
        [
            _as_score(name, cast("Result", column[place]), signatures[name].format())
            for name, column in results.items()
        ]
        for place in range(len(systems))
    ]


def _as_score(name: str, found: "Result", signature: str) -> Score:
    assert found.mean is not None and found.ci is not None, found
    return Score(
        name,
        float(found.score),
        signature,
        mean=float(found.mean),
        interval=float(found.ci),
        p_value=found.p_value,
    )


def check_seed() -> None:
    """Raise ConfigError when SACREBLEU_SEED, which seeds all resampling, is no seed."""
    seed = os.environ.get(SEED, "12345")
    if seed.lower() != "none" and not (seed.isascii() and seed.isdigit()):
        raise ConfigError(
            f"{SEED} is {seed!r}; set a whole number, or none for a new one each time"
        )
