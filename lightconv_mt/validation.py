"""What a validation measures: loss and BLEU on held-out pairs, sample translations, pictures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from lightconv_mt.data.batching import Batch, BatchConfig, collate, pack_by_length
from lightconv_mt.data.corpus import SentencePair
from lightconv_mt.data.tokenizer_pair import TokenizerPair
from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.decode.translator import Translator
from lightconv_mt.model.transformer import Seq2SeqTransformer
from lightconv_mt.scoring import Score, build_metric, joined_warnings, score_by
from lightconv_mt.train.distributed import Distributed
from lightconv_mt.train.loss import LabelSmoothedLoss, sum_loss
from lightconv_mt.train.pictures import draw_model
from lightconv_mt.train.state import Validation

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Validator:
    """Scores the translator's model as it is at the time of the call."""

    def __init__(
        self,
        translator: Translator,
        pairs: Sequence[SentencePair],
        *,
        batch: BatchConfig,
        decode: DecodeConfig,
        label_smoothing: float,
        num_samples: int,
        tgt_lang: str,
        distributed: Distributed,
    ) -> None:
        """Tokenise the pairs once.

        Args:
            translator: holds the model, which is no ensemble.
            pairs: sources and references.
            batch: token budget and cut of sources; no pair is dropped.
            decode: the search.
            label_smoothing: of the loss, as in training.
            num_samples: translations to show.
            tgt_lang: decides BLEU's tokenisation.
            distributed: processes that share the work and are called together.

        Raises:
            ConfigError: when BLEU's tokenizer of that language is not installed.
        """
        assert isinstance(translator.model, Seq2SeqTransformer), type(translator.model)
        self.translator, self.model, self.pairs = translator, translator.model, pairs
        self.decode, self.distributed = decode, distributed
        lowercase = translator.tokenizers.tgt.lowercase
        self.metric = build_metric("bleu", lowercase=lowercase, tgt_lang=tgt_lang)
        self.loss = LabelSmoothedLoss(label_smoothing, backend=self.model.backend)
        self.batches = _batches(pairs, translator.tokenizers, batch)
        self.max_tokens = batch.max_tokens
        # Spread over the set, the same every time.
        self.shown = np.linspace(
            0, len(pairs) - 1, num=min(num_samples, len(pairs)), dtype=int
        ).tolist()

    def __call__(self) -> Validation:
        """Measure."""
        translator, distributed = self.translator, self.distributed
        batches = self.batches[distributed.rank :: distributed.size]
        device, precision = translator.device, translator.precision
        with torch.autocast(device.type, precision, enabled=precision not in (None, torch.float32)):
            sums = sum_loss(self.model, (batch.to(device) for batch in batches), self.loss)
        loss, nll, tokens = distributed.total(*sums)
        hypotheses = self.translate()
        bleu = self.score(hypotheses)
        return Validation(
            metrics={
                "valid/loss": loss / tokens,
                "valid/nll": nll / tokens,
                "valid/bleu": bleu.value,
            },
            samples=[(*self.pairs[index], hypotheses[index]) for index in self.shown],
            figures=self._figures() if distributed.is_main else {},
        )

    def translate(self) -> list[str]:
        """Translations of the sources."""
        sources = [pair.src for pair in self.pairs][self.distributed.rank :: self.distributed.size]
        found = self.translator.translate(sources, self.decode, max_tokens=self.max_tokens)
        return self.distributed.interleaved([translation.text for translation in found])

    def score(self, hypotheses: list[str]) -> Score:
        """Detokenised BLEU with its signature, without case where the model has none."""
        with joined_warnings():
            return score_by([self.metric], hypotheses, [[pair.tgt for pair in self.pairs]])[0]

    def _figures(self) -> "dict[str, Figure]":
        if not self.shown:
            return {}
        tokenizers = self.translator.tokenizers
        (batch,) = _batches([self.pairs[self.shown[0]]], tokenizers, BatchConfig())
        src_pieces = tokenizers.src.pieces(batch.src[0].tolist())
        tgt_pieces = tokenizers.tgt.pieces(batch.tgt_in[0].tolist())
        return draw_model(
            self.model,
            batch.to(self.translator.device),
            src_pieces=src_pieces,
            tgt_pieces=tgt_pieces,
        )


def _batches(
    pairs: Sequence[SentencePair], tokenizers: TokenizerPair, config: BatchConfig
) -> list[Batch]:
    sides = zip(*pairs, strict=True)
    src, tgt = (
        [[*ids, tokenizer.ids.eos] for ids in tokenizer.encode_batch(list(side))]
        for tokenizer, side in zip((tokenizers.src, tokenizers.tgt), sides, strict=True)
    )
    src = [[*config.cut(ids)] for ids in src]
    src_lengths, tgt_lengths = (
        np.array(list(map(len, side)), dtype=np.int32) for side in (src, tgt)
    )
    packed = pack_by_length(np.arange(len(pairs)), src_lengths, tgt_lengths, config)
    return [
        collate(
            [(src[index], tgt[index]) for index in indices], tokenizers.src.ids, tokenizers.tgt.ids
        )
        for indices in (group.tolist() for group in packed)
    ]
