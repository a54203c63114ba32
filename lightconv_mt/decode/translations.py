"""What a translator gives: outputs, how likely given targets are, what was odd about the lines."""

from dataclasses import dataclass, fields
from math import exp

from lightconv_mt.decode.alignment import Links, pharaoh
from lightconv_mt.decode.ranking import ScoreKind


@dataclass(frozen=True)
class Translation:
    """The output for one line.

    Attributes:
        text: the best output, without line breaks; empty for an empty line.
        score: its length-normalised log-probability (natural logarithm), unless score_kind says
            otherwise; 0 for an empty line, the sum over its parts for one that was cut.
        nbest: up to decode.nbest (text, score), best first; the first is the above.
        score_kind: what the scores are, and so the order.
        alignment: links (source word, output word) of the best output, if decode.alignments asks
            for them; words are counted from 0.
    """

    text: str
    score: float
    nbest: tuple[tuple[str, float], ...]
    score_kind: ScoreKind = ScoreKind.log_prob
    alignment: Links | None = None

    @property
    def notes(self) -> dict[str, str]:
        """What there is besides texts and their log-probabilities, by name."""
        notes = {}
        if self.score_kind is not ScoreKind.log_prob:
            notes["score_kind"] = self.score_kind.value
        if self.alignment is not None:
            notes["alignment"] = pharaoh(self.alignment)
        return notes


@dataclass(frozen=True)
class TargetScore:
    """How likely a given target is.

    Attributes:
        log_prob: natural logarithm of its probability, EOS included.
        tokens: its tokens with EOS.
    """

    log_prob: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """Of a token."""
        return exp(-self.log_prob / self.tokens)


@dataclass
class TranslationReport:
    """What happened to the lines translated so far.

    Attributes:
        lines: lines seen.
        empty: lines with nothing to translate; their output is empty.
        bad_utf8: lines in which bytes that are no UTF-8 were replaced.
        truncated: lines longer than the model is given; their end is not translated.
        in_parts: such lines that are translated part by part instead.
        line_breaks: outputs in which a line break was replaced by a space.
        failed: lines without any output (the model gave no finite probability).
    """

    lines: int = 0
    empty: int = 0
    bad_utf8: int = 0
    truncated: int = 0
    in_parts: int = 0
    line_breaks: int = 0
    failed: int = 0

    @property
    def text(self) -> str:
        """All counts that are not zero, on one line."""
        counts = {field.name: getattr(self, field.name) for field in fields(self)}
        named = [f"{name.replace('_', ' ')} {n:,}" for name, n in counts.items() if n]
        return ", ".join(named) or "lines 0"
