"""BLEU of Moses' words, the scale of the paper's tables: another one than detokenised SacreBLEU.

The paper's English-German figures are of words whose compounds are split besides, its IWSLT ones of
lower-cased words. Both sides are made of plain text here, by sacremoses, so that nobody's own
tokenisation goes in.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sacrebleu.metrics.bleu import BLEU, BLEUScore, BLEUSignature

from lightconv_mt.errors import ConfigError

if TYPE_CHECKING:
    from sacremoses import MosesTokenizer

# Words of ASCII space alone, as in the Perl line that the published scripts run.
_COMPOUND = re.compile(r"(\S)-(\S)", re.ASCII)


def paper_metrics(tgt_lang: str, *, lowercase: bool = False) -> list["PaperBleu"]:
    """BLEU of Moses' words, as the papers before SacreBLEU have it, and with compounds split.

    Args:
        tgt_lang: language code, of Moses' word rules.
        lowercase: regardless of case.

    Raises:
        ConfigError: when sacremoses is not installed.
    """
    tokenizer = moses_tokenizer(tgt_lang)

    @lru_cache(maxsize=100_000)  # both metrics see the same lines
    def words(line: str) -> str:
        text: str = tokenizer.tokenize(line, return_str=True)
        return text

    return [
        PaperBleu("tokenised BLEU", words, "kept", tgt_lang=tgt_lang, lowercase=lowercase),
        PaperBleu(
            "compound-split BLEU",
            lambda line: split_compounds(words(line)),
            "split",
            tgt_lang=tgt_lang,
            lowercase=lowercase,
        ),
    ]


class PaperSignature(BLEUSignature):
    """BLEU's, followed by what made the words."""

    def __init__(self, args: dict[str, Any]) -> None:
        """Take the metric's attributes."""
        super().__init__(args)
        self.words = args["words"]

    def format(self, short: bool = False) -> str:
        """The signature; `short` abbreviates sacrebleu's keys."""
        return f"{super().format(short)}|{self.words}"


class PaperBleu(BLEU):
    """BLEU of given words without smoothing, as multi-bleu.perl and fairseq-score count it."""

    _SIGNATURE_TYPE = PaperSignature

    def __init__(
        self,
        name: str,
        split: Callable[[str], str],
        compounds: str,
        *,
        tgt_lang: str,
        lowercase: bool,
    ) -> None:
        """Count words that a function makes.

        Args:
            name: of the scores.
            split: puts spaces between the words of a line.
            compounds: what it does with them, for the signature.
            tgt_lang: likewise.
            lowercase: regardless of case.
        """
        super().__init__(lowercase=lowercase, tokenize="none", smooth_method="none", force=True)
        self.name, self.split = name, split
        moses = f"moses-{tgt_lang}-sacremoses-{version('sacremoses')}"
        self.words = f"words:{moses}|compounds:{compounds}"

    def _preprocess_segment(self, sent: str) -> str:
        return super()._preprocess_segment(self.split(sent))

    def _compute_score_from_stats(self, stats: list[int]) -> BLEUScore:
        found = super()._compute_score_from_stats(stats)
        found.name = self.name
        return found


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
