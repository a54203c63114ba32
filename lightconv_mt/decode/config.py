"""How to search: the options of decoding and their limits."""

from dataclasses import dataclass
from enum import Enum
from math import inf, isfinite

from lightconv_mt.errors import ConfigError

MAX_BEAM_SIZE = 1024
MAX_SEED = 2**32 - 1


class LengthNormalization(Enum):
    """What divides the log-probability: length^a, ((5 + length) / 6)^a (Wu et al., 2016) or 1."""

    mean = "mean"
    gnmt = "gnmt"
    none = "none"


class Utility(Enum):
    """How alike two outputs are, by SacreBLEU's score of one sentence, 0 to 100."""

    chrf = "chrf"
    bleu = "bleu"


@dataclass(kw_only=True)
class DecodeConfig:
    """How to search; lengths count target tokens before EOS.

    Attributes:
        beam_size: hypotheses kept at each step; 1 is greedy.
        length_penalty: exponent of the length normalisation; more favours longer output.
        length_normalization: its formula.
        max_length_ratio: at most int(ratio * source tokens with EOS + extra) tokens.
        max_length_extra: see max_length_ratio.
        max_length: at most this many tokens, whatever the source.
        min_length_ratio: no EOS before int(ratio * source tokens with EOS) tokens, as far as the
            maximum allows.
        min_length: no EOS before this many tokens either.
        unk_penalty: taken from the unknown token's log-probability; negative favours it.
        ban_unk: no unknown token at all.
        word_reward: added to the log-probability of every token but EOS; more makes output longer.
        no_repeat_ngram_size: no n-gram of this size twice in one hypothesis; 0 is off.
        nbest: hypotheses returned for each sentence.
        sampling: draw beam_size outputs at random instead of searching for the best; n-best are
            those of the highest score.
        temperature: of sampling, divides the log-probabilities; below 1 is surer of itself.
        top_k: sampling is among so many tokens; 0 is all.
        top_p: sampling is among the fewest tokens that hold this much of the probability.
        seed: of sampling, 32 bits; an output is a function of seed, line number and rank.
        strict: no bit of an output depends on the batch. What does not run in C++, whose rows know
            nothing of each other, is computed for each sentence alone, which is slower.
        early_stop: a sentence is done once beam_size hypotheses have ended (fairseq's rule).
            False goes on until no live one can beat the worst of the beam_size best.
        beam_groups: beams of beam_size / beam_groups hypotheses each, that are to differ from each
            other (diverse beam search, Vijayakumar et al., 2016); 1 is plain beam search.
        diversity: taken from a token's log-probability for each hypothesis of an earlier group that
            has it at the same place, if there are several groups.
        coverage_penalty: beta of Wu et al. (2016), equation 14: what is added to the score of a
            finished output for source tokens that it does not attend to; 0 is off.
        channel_weight: of a model that translates back, in the score that orders the beam_size
            outputs (noisy-channel reranking, Yee et al., 2019): the log-probability it gives the
            source, for each source token, is added so many times; 0 is off.
        mbr: of beam_size samples, take the one that is most like the others by this measure
            (minimum Bayes risk); the score is its mean, 0 to 100. None is off.
        alignments: tell which word of the source each word of the output attends to most.
        attention_layer: decoder layer, from 1, that coverage and alignments look at; None is the
            last but one of three or more, and the last of fewer.
        shortlist: outputs are made of the tokens that a file of scripts/shortlist.py lists for
            their source: its path, or auto for that of the (first) run folder. Probabilities are
            shared among these alone. None is the whole vocabulary.
    """

    beam_size: int = 5
    length_penalty: float = 1.0
    length_normalization: LengthNormalization = LengthNormalization.mean
    max_length_ratio: float = 2.0
    max_length_extra: int = 50
    max_length: int | None = None
    min_length_ratio: float = 0.0
    min_length: int = 1
    unk_penalty: float = 0.0
    ban_unk: bool = False
    word_reward: float = 0.0
    no_repeat_ngram_size: int = 0
    nbest: int = 1
    sampling: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 1
    strict: bool = False
    early_stop: bool = True
    beam_groups: int = 1
    diversity: float = 0.5
    coverage_penalty: float = 0.0
    channel_weight: float = 0.0
    mbr: Utility | None = None
    alignments: bool = False
    attention_layer: int | None = None
    shortlist: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.beam_size <= MAX_BEAM_SIZE:
            raise ConfigError(f"decode.beam_size is {self.beam_size}; give 1 to {MAX_BEAM_SIZE}")
        if not 1 <= self.nbest <= self.beam_size:
            raise ConfigError(
                f"decode.nbest is {self.nbest}; give 1 to decode.beam_size ({self.beam_size})"
            )
        for key in (
            "max_length_ratio",
            "max_length_extra",
            "min_length_ratio",
            "min_length",
            "no_repeat_ngram_size",
            "top_k",
            "diversity",
            "coverage_penalty",
            "channel_weight",
        ):
            if not 0 <= getattr(self, key) < inf:
                raise ConfigError(f"decode.{key} is {getattr(self, key)}; give 0 or more")
        for key in ("temperature", "top_p"):
            if not 0 < getattr(self, key) <= (1 if key == "top_p" else inf):
                above = ", at most 1" if key == "top_p" else ""
                raise ConfigError(
                    f"decode.{key} is {getattr(self, key)}; give a number above 0{above}"
                )
        for key, neutral in {"temperature": 1.0, "top_k": 0, "top_p": 1.0}.items():
            if getattr(self, key) != neutral and not self.sampling:
                raise ConfigError(
                    f"decode.{key} is {getattr(self, key)}, but it is of sampling; "
                    f"set decode.sampling=true, or leave it out"
                )
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"decode.seed is {self.seed}; give 0 to {MAX_SEED}")
        for key in ("length_penalty", "unk_penalty", "word_reward"):
            if not isfinite(getattr(self, key)):
                raise ConfigError(f"decode.{key} is {getattr(self, key)}; give a finite number")
        if self.max_length is not None and self.max_length < self.min_length:
            raise ConfigError(
                f"decode.max_length is {self.max_length}, below decode.min_length, which is "
                f"{self.min_length}; lower decode.min_length or raise decode.max_length"
            )
        if self.shortlist is not None and not self.shortlist.strip():
            raise ConfigError("decode.shortlist is empty; give auto, the path of a file, or null")
        self._check_groups()
        self._check_choice()

    def _check_groups(self) -> None:
        groups = self.beam_groups
        if groups < 1 or self.beam_size % groups:
            raise ConfigError(
                f"decode.beam_groups is {groups}; give a divisor of decode.beam_size, which is "
                f"{self.beam_size}"
            )
        if groups > 1 and self.sampling:
            raise ConfigError(
                f"decode.beam_groups is {groups}, but samples have no groups; "
                f"set decode.sampling=false or decode.beam_groups=1"
            )

    def _check_choice(self) -> None:
        if self.attention_layer is not None and self.attention_layer < 1:
            raise ConfigError(
                f"decode.attention_layer is {self.attention_layer}; give 1 or more, or null"
            )
        orders = [
            key for key in ("mbr", "coverage_penalty", "channel_weight") if getattr(self, key)
        ]
        if len(orders) > 1:
            raise ConfigError(
                f"decode.{orders[0]} and decode.{orders[1]} both order the outputs; set one of them"
            )
        if self.mbr is None:
            return
        if not self.sampling:
            raise ConfigError(
                f"decode.mbr={self.mbr.name} chooses among samples; set decode.sampling=true"
            )
        if self.beam_size < 2:
            raise ConfigError(
                f"decode.mbr={self.mbr.name} compares samples, but decode.beam_size is 1; "
                f"give the number of samples, such as decode.beam_size=16"
            )

    def length_limit(self, src_length: int) -> int:
        """Most tokens before EOS for a source of `src_length` tokens, its EOS included."""
        limit = int(self.max_length_ratio * src_length + self.max_length_extra)
        return limit if self.max_length is None else min(limit, self.max_length)

    def length_floor(self, src_length: int) -> int:
        """Fewest tokens before EOS for a source of `src_length` tokens, its EOS included."""
        return max(self.min_length, int(self.min_length_ratio * src_length))


def length_penalty(length: int, config: DecodeConfig) -> float:
    """Divisor of the log-probability of a hypothesis of `length` tokens, EOS included."""
    match config.length_normalization:
        case LengthNormalization.mean:
            return float(length**config.length_penalty)
        case LengthNormalization.gnmt:
            return float(((5 + length) / 6) ** config.length_penalty)
        case LengthNormalization.none:
            return 1.0
