"""BLEU of Moses' words, the scale of the paper's tables: another one than detokenised SacreBLEU.

The paper's English-German figures are of words whose compounds are split besides, its IWSLT ones of
lower-cased words. Both sides are made of plain text here, by sacremoses, so that nobody's own
tokenisation goes in.
"""

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from lightconv_mt.errors import ConfigError
from lightconv_mt.scoring import Score, check_streams, metric_score

if TYPE_CHECKING:
    from sacremoses import MosesTokenizer

# Words of ASCII space alone, as in the Perl line that the published scripts run.
_COMPOUND = re.compile(r"(\S)-(\S)", re.ASCII)


def paper_scores(
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tgt_lang: str,
    lowercase: bool = False,
) -> list[Score]:
    """Score a corpus as the papers before SacreBLEU did.

    BLEU without smoothing, as multi-bleu.perl and fairseq-score count it.

    Args:
        hypotheses: one detokenised line a sentence.
        references: one or more streams of as many lines.
        tgt_lang: language code, of Moses' word rules.
        lowercase: regardless of case.

    Returns:
        BLEU of Moses' words, and the same with compounds split.

    Raises:
        ConfigError: when sacremoses is not installed.
        DataError: when line counts differ or there is nothing to score.
    """
    from sacrebleu import BLEU

    check_streams(hypotheses, references)
    tokenizer = moses_tokenizer(tgt_lang)
    streams = [
        [tokenizer.tokenize(line, return_str=True) for line in stream]
        for stream in (hypotheses, *references)
    ]
    scores = []
    for name, compounds in (("tokenised BLEU", "kept"), ("compound-split BLEU", "split")):
        if compounds == "split":
            streams = [[split_compounds(line) for line in stream] for stream in streams]
        bleu = BLEU(lowercase=lowercase, tokenize="none", smooth_method="none", force=True)
        found = metric_score(bleu, streams[0], streams[1:])
        words = f"|words:moses-{tgt_lang}-sacremoses-{version('sacremoses')}|compounds:{compounds}"
        scores.append(Score(name=name, value=found.value, signature=found.signature + words))
    return scores


def split_compounds(line: str) -> str:
    """Split words at hyphens inside them: `a-b` becomes `a ##AT##-##AT## b`."""
    return _COMPOUND.sub(r"\1 ##AT##-##AT## \2", line)


def moses_tokenizer(lang: str) -> "MosesTokenizer":
    """Moses' words of a language; unknown languages take the rules of English.

    Raises:
        ConfigError: when sacremoses is not installed.
    """
    try:
        from sacremoses import MosesTokenizer
    except ImportError as error:
        raise ConfigError(
            "paper_scoring needs sacremoses; pip install 'lightconv-mt[paper]'"
        ) from error
    return MosesTokenizer(lang)
