"""What every plain search of the tests goes by: what may follow a prefix, and what it is worth."""

from math import inf, isclose

from table_model import IDS, TableModel

from lightconv_mt.decode.config import DecodeConfig, LengthNormalization
from lightconv_mt.decode.trace import Hypothesis


def allowed(
    model: TableModel, sentence: int, prefix: tuple[int, ...], config: DecodeConfig, limit: int
) -> list[float]:
    """Log-probabilities after a prefix, with the penalties and bans of the config."""
    logp = list(model.logp(sentence, prefix))
    logp[IDS.pad] = -inf
    logp[IDS.unk] -= config.unk_penalty
    if len(prefix) >= limit:
        logp = [value if token == IDS.eos else -inf for token, value in enumerate(logp)]
    elif len(prefix) < config.min_length:
        logp[IDS.eos] = -inf
    size = config.no_repeat_ngram_size
    if size:
        seen = {prefix[i : i + size] for i in range(len(prefix) - size + 1)}
        for token in range(len(logp)):
            if (*prefix, token)[-size:] in seen:
                logp[token] = -inf
    return logp


def divided(total: float, length: int, config: DecodeConfig) -> float:
    alpha = config.length_penalty
    match config.length_normalization:
        case LengthNormalization.mean:
            return total / length**alpha
        case LengthNormalization.gnmt:
            return total / ((5 + length) / 6) ** alpha
        case LengthNormalization.none:
            return total


def check(
    found: list[Hypothesis], expected: list[tuple[float, tuple[int, ...]]], nbest: int
) -> None:
    assert [hypothesis.tokens for hypothesis in found] == [item[1] for item in expected[:nbest]]
    for hypothesis, (score, _) in zip(found, expected, strict=False):
        assert isclose(hypothesis.score, score, abs_tol=1e-9)
