"""What happens between the end of a search and its texts: the order of outputs, alignments."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightconv_mt.data.tokenizer_pair import TokenizerPair
from lightconv_mt.decode.alignment import Links, link_words
from lightconv_mt.decode.attention import read_attention
from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.decode.ranking import (
    Output,
    rank_by_channel,
    rank_by_coverage,
    rank_by_utility,
)
from lightconv_mt.decode.trace import Hypothesis
from lightconv_mt.decode.translations import TargetScore
from lightconv_mt.model.ensemble import Ensemble
from lightconv_mt.model.transformer import Seq2SeqTransformer

# How likely each of the second texts is as a translation of the first beside it.
ScorePairs = Callable[[Sequence[str], Sequence[str]], list[TargetScore]]


class Finisher:
    """Puts hypotheses in order and aligns the best."""

    def __init__(
        self,
        model: Seq2SeqTransformer | Ensemble,
        tokenizers: TokenizerPair,
        *,
        device: torch.device,
        score_back: ScorePairs | None = None,
    ) -> None:
        """Finish outputs of a model.

        Args:
            model: on `device` already.
            tokenizers: those it was trained with.
            device: where it computes.
            score_back: of a model that translates back, for config.channel_weight.
        """
        self.model, self.tokenizers, self.device = model, tokenizers, device
        self.score_back = score_back

    def rank(
        self,
        found: list[list[Hypothesis]],
        lines: list[str],
        sources: list[list[int]],
        config: DecodeConfig,
    ) -> list[list[Output]]:
        """The config.nbest best outputs of each source as text, in the order of its scores.

        Args:
            found: hypotheses of each source.
            lines: the text that the model was given of each.
            sources: its ids.
            config: of the search.
        """
        decode = self.tokenizers.tgt.decode
        ranked = [
            [Output(each, decode(list(each.tokens)), each.score) for each in hypotheses]
            for hypotheses in found
        ]
        if config.coverage_penalty:
            tokens = [[each.tokens for each in hypotheses] for hypotheses in found]
            attended = self._attention(sources, tokens, config)
            ranked = [
                rank_by_coverage(outputs, weights, penalty=config.coverage_penalty)
                for outputs, weights in zip(ranked, attended, strict=True)
            ]
        elif config.channel_weight:
            ranked = self._rank_by_channel(ranked, lines, config.channel_weight)
        elif config.mbr is not None:
            ranked = [rank_by_utility(outputs, config.mbr) for outputs in ranked]
        return [outputs[: config.nbest] for outputs in ranked]

    def align(
        self,
        lines: list[str],
        sources: list[list[int]],
        ranked: list[list[Output]],
        config: DecodeConfig,
    ) -> list[Links]:
        """Links of the best output of each line, none where there is no output."""
        best = [[outputs[0].hypothesis.tokens for _ in outputs[:1]] for outputs in ranked]
        attended = self._attention(sources, best, config)
        return [
            link_words(
                weights[0],
                src=self.tokenizers.src.spell_text(line)[: weights[0].shape[1] - 1],
                src_text=line,
                tgt=self.tokenizers.tgt.spell(outputs[0].hypothesis.tokens[:-1]),
                tgt_text=outputs[0].text,
            )
            if outputs
            else ()
            for line, outputs, weights in zip(lines, ranked, attended, strict=True)
        ]

    def _rank_by_channel(
        self, ranked: list[list[Output]], lines: list[str], weight: float
    ) -> list[list[Output]]:
        assert self.score_back is not None
        texts = [output.text for outputs in ranked for output in outputs]
        repeated = [line for line, each in zip(lines, ranked, strict=True) for _ in each]
        scores = iter(self.score_back(texts, repeated))
        found = []
        for outputs in ranked:
            mine = [next(scores) for _ in outputs]
            likely = [score.log_prob / score.tokens for score in mine]
            found.append(rank_by_channel(outputs, likely, weight=weight))
        return found

    def _attention(
        self,
        sources: list[list[int]],
        outputs: Sequence[Sequence[Sequence[int]]],
        config: DecodeConfig,
    ) -> list[list[Tensor]]:
        return read_attention(
            self.model,
            self.tokenizers,
            sources,
            outputs,
            layer=config.attention_layer,
            device=self.device,
        )
