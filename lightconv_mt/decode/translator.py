"""Strings in, strings out: batches source lines, searches, and puts the outputs back in order."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path

import torch

from lightconv_mt.data.batching import collate
from lightconv_mt.data.tokenizer_pair import TokenizerPair
from lightconv_mt.decode.batch_search import BatchSearch, Request, batches_by_length
from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.decode.finishing import Finisher
from lightconv_mt.decode.long_lines import LongLines, Parts, cut_lines, join_outputs, word_offsets
from lightconv_mt.decode.ranking import Output, ScoreKind, search_config
from lightconv_mt.decode.shortlist import Shortlists
from lightconv_mt.decode.translations import TargetScore, Translation, TranslationReport
from lightconv_mt.errors import ConfigError, DataError
from lightconv_mt.model.ensemble import Ensemble
from lightconv_mt.model.transformer import Seq2SeqTransformer

logger = logging.getLogger(__name__)

# Between the numbers of a line's parts: an odd number near 2**32 / golden ratio, for draws are a
# hash of 32 bits.
FAR_AWAY = 0x9E3779B1


class Translator:
    """Translates lines with one model; output has as many lines as the input, in its order.

    Attributes:
        report: counts over everything this translator has done.
    """

    def __init__(
        self,
        model: Seq2SeqTransformer | Ensemble,
        tokenizers: TokenizerPair,
        *,
        device: torch.device,
        precision: torch.dtype | None = None,
        max_source_tokens: int = 1024,
        long_lines: LongLines = LongLines.truncate,
        run_dir: Path | None = None,
        channel: "Translator | None" = None,
    ) -> None:
        """Translate with a model that is on `device` already.

        Args:
            model: put into evaluation mode while it translates, and back.
            tokenizers: those it was trained with.
            device: where it computes.
            precision: as `BatchSearch`.
            max_source_tokens: of a source the model is given, EOS included.
            long_lines: what happens to longer ones.
            run_dir: the folder that the model is from; holds what decode.shortlist=auto means.
            channel: translates back, for decode.channel_weight.
        """
        assert max_source_tokens > 1, max_source_tokens
        self.model, self.tokenizers = model, tokenizers
        self.device, self.precision = device, precision
        self.max_source_tokens, self.long_lines = max_source_tokens, long_lines
        self.report = TranslationReport()
        self._search = BatchSearch(
            model,
            src_ids=tokenizers.src.ids,
            tgt_ids=tokenizers.tgt.ids,
            device=device,
            precision=precision,
        )
        self._shortlists = Shortlists(tokenizers, run_dir)
        self._finisher = Finisher(
            model, tokenizers, device=device, score_back=channel.score if channel else None
        )

    def translate(
        self,
        lines: Sequence[str],
        config: DecodeConfig,
        *,
        prefixes: Sequence[str] | None = None,
        max_tokens: int = 4096,
        batch_size: int = 64,
        first_line: int = 0,
    ) -> list[Translation]:
        """Translate lines.

        Args:
            lines: one sentence each.
            config: the search.
            prefixes: what the output of each line begins with, whole words; "" is free.
            max_tokens: source tokens of a batch, padding included; a longer line stands alone.
            batch_size: lines of a batch, at most.
            first_line: number of the first line; numbers tell the draws of sampling apart.

        Returns:
            One translation a line, in order.

        Raises:
            ConfigError: when channel_weight has no channel.
        """
        assert not isinstance(lines, str), "give a list of lines"
        if config.channel_weight and self._finisher.score_back is None:
            raise ConfigError(
                f"decode.channel_weight is {config.channel_weight}, but there is no channel; load "
                f"the model with channel=RUN, the run folder of one that translates back"
            )
        before, begun = self.report.lines, list(prefixes) if prefixes else [""] * len(lines)
        options = {"max_tokens": max_tokens, "batch_size": batch_size}
        if self.long_lines is LongLines.truncate:
            numbers = range(first_line, first_line + len(lines))
            pieces = self._pieces(lines)
            return self._translate(
                lines, pieces, config, prefixes=begun, numbers=numbers, **options
            )
        parts = cut_lines(lines, self._pieces, self.max_source_tokens - 1)
        found = self._translate(
            parts.texts,
            parts.pieces,
            config,
            prefixes=[
                begun[line] if not place else ""
                for line, place in zip(parts.lines, parts.places, strict=True)
            ],
            # The first part draws as an uncut line does, the others as lines far away.
            numbers=[
                first_line + line + place * FAR_AWAY
                for line, place in zip(parts.lines, parts.places, strict=True)
            ],
            **options,
        )
        self.report.lines = before + len(lines)
        return self._join_parts(found, parts, lines, config)

    def _translate(
        self,
        lines: Sequence[str],
        pieces: Sequence[list[int]],
        config: DecodeConfig,
        *,
        prefixes: Sequence[str],
        numbers: Sequence[int],
        max_tokens: int,
        batch_size: int,
    ) -> list[Translation]:
        """Translate lines that are not cut any more; `numbers` tell the draws of sampling apart."""
        sources = self._sources(lines, pieces)
        tokenizer = self.tokenizers.tgt
        begun = tokenizer.encode_batch(list(prefixes)) if any(prefixes) else [[]] * len(lines)
        nothing = Translation(
            text="",
            score=0.0,
            nbest=(("", 0.0),),
            score_kind=ScoreKind.of(config),
            alignment=() if config.alignments else None,
        )
        results = [nothing] * len(lines)
        found = self._search.search(
            [
                Request(source, number, prefix)
                for source, number, prefix in zip(sources, numbers, begun, strict=True)
            ],
            search_config(config),
            max_tokens=max_tokens,
            batch_size=batch_size,
            shortlist=self._shortlists.find(config.shortlist),
        )
        most = 1 if config.strict else batch_size
        with self._search.inference():
            for batch in batches_by_length(sources, max_tokens=max_tokens, batch_size=most):
                texts = [self._given(lines[index], pieces[index]) for index in batch]
                chosen = [sources[index] for index in batch]
                ranked = self._finisher.rank(
                    [found[index] for index in batch], texts, chosen, config
                )
                for index, outputs in zip(batch, ranked, strict=True):
                    results[index] = self._decode(outputs, nothing)
                if config.alignments:
                    aligned = self._finisher.align(
                        [lines[index] for index in batch], chosen, ranked, config
                    )
                    for index, links in zip(batch, aligned, strict=True):
                        results[index] = replace(results[index], alignment=links)
        return results

    def translate_stream(
        self,
        lines: Iterable[str],
        config: DecodeConfig,
        *,
        prefixes: Iterable[str] | None = None,
        chunk_size: int = 1024,
        max_tokens: int = 4096,
        batch_size: int = 64,
    ) -> Iterator[Translation]:
        """Translate any number of lines, `chunk_size` at a time; other arguments as `translate`.

        Raises:
            DataError: when lines and prefixes differ in number.
        """
        stream, done = iter(lines), 0
        starts = None if prefixes is None else iter(prefixes)
        while chunk := list(islice(stream, chunk_size)):
            begun = None if starts is None else list(islice(starts, len(chunk)))
            if begun is not None and len(begun) < len(chunk):
                raise DataError(
                    f"there are {self.report.lines + len(begun):,} prefixes for more lines; "
                    f"give one, or an empty line, for each"
                )
            yield from self.translate(
                chunk,
                config,
                prefixes=begun,
                max_tokens=max_tokens,
                batch_size=batch_size,
                first_line=done,
            )
            done += len(chunk)
        if starts is not None and next(starts, None) is not None:
            raise DataError(
                f"there are more prefixes than the {done:,} lines; "
                f"give one, or an empty line, for each"
            )

    def score(
        self, lines: Sequence[str], targets: Sequence[str], *, max_tokens: int = 4096
    ) -> list[TargetScore]:
        """How likely the model finds given targets.

        Args:
            lines: sources, cut as for translation.
            targets: one for each.
            max_tokens: source tokens of a batch, padding included.

        Raises:
            ConfigError: when the precision is int8, which is of searches alone.
        """
        if self.precision is torch.int8:
            raise ConfigError(
                "precision is int8, which scores of given targets cannot have; take fp32 or bf16"
            )
        src_ids, tgt_ids = self.tokenizers.src.ids, self.tokenizers.tgt.ids
        sources = self._sources(lines, self._pieces(lines))
        sources = [source or [src_ids.eos] for source in sources]
        outputs = [[*each, tgt_ids.eos] for each in self.tokenizers.tgt.encode_batch(list(targets))]
        found = [TargetScore(0.0, 0)] * len(sources)
        with self._search.inference():
            for places in batches_by_length(sources, max_tokens=max_tokens, batch_size=64):
                pairs = [(sources[place], outputs[place]) for place in places]
                batch = collate(pairs, src_ids, tgt_ids).to(self.device)
                logits = self.model.project(
                    self.model(batch.src, batch.src_mask, batch.tgt_in, batch.tgt_mask)
                )
                logp = logits.log_softmax(
                    -1, dtype=torch.promote_types(logits.dtype, torch.float32)
                )
                chosen = logp.gather(2, batch.tgt_out[..., None]).squeeze(2).double()
                sums = chosen.masked_fill(~batch.tgt_mask, 0.0).sum(1).tolist()
                for place, log_prob in zip(places, sums, strict=True):
                    found[place] = TargetScore(log_prob, len(outputs[place]))
        return found

    def _pieces(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizers.src.encode_batch(list(texts))

    def _join_parts(
        self,
        found: Sequence[Translation],
        parts: Parts,
        lines: Sequence[str],
        config: DecodeConfig,
    ) -> list[Translation]:
        """Translations of whole lines from those of all their parts."""
        joined = list(islice(found, len(lines)))
        pairs = zip(parts.lines, parts.texts, found, strict=True)
        for line, group in groupby(pairs, key=lambda pair: pair[0]):
            texts, pieces = zip(*((text, each) for _, text, each in group), strict=True)
            if len(pieces) == 1:
                joined[line] = pieces[0]
                continue
            if not self.report.in_parts:
                logger.warning(
                    "line %d is longer than %d tokens; translated in %d parts "
                    "(further lines like it are counted, not shown)",
                    self.report.lines - len(lines) + line + 1,
                    self.max_source_tokens - 1,
                    len(pieces),
                )
            self.report.in_parts += 1
            nbest = tuple(join_outputs([each.nbest for each in pieces], config.nbest))
            joined[line] = replace(pieces[0], text=nbest[0][0], score=nbest[0][1], nbest=nbest)
            if config.alignments:
                starts = zip(
                    word_offsets(texts, lines[line]),
                    word_offsets([each.text for each in pieces], nbest[0][0]),
                    strict=True,
                )
                links = tuple(
                    (source + before, output + made)
                    for (before, made), each in zip(starts, pieces, strict=True)
                    for source, output in each.alignment or ()
                )
                joined[line] = replace(joined[line], alignment=links)
        return joined

    def _sources(self, lines: Sequence[str], pieces: Sequence[list[int]]) -> list[list[int]]:
        """Source ids with EOS of each line; none where there is nothing to translate."""
        limit = self.max_source_tokens
        sources: list[list[int]] = []
        for line, ids in zip(lines, pieces, strict=True):
            self.report.lines += 1
            if not line.strip() or not ids:
                self.report.empty += 1
                sources.append([])
                continue
            if len(ids) >= limit:
                if not self.report.truncated:
                    logger.warning(
                        "line %d has %d tokens; only the first %d are translated "
                        "(further lines like it are counted, not shown)",
                        self.report.lines,
                        len(ids),
                        limit - 1,
                    )
                self.report.truncated += 1
            sources.append([*ids[: limit - 1], self.tokenizers.src.ids.eos])
        return sources

    def _given(self, line: str, pieces: list[int]) -> str:
        """The part of a line that the model is given."""
        kept = pieces[: self.max_source_tokens - 1]
        return line if len(kept) == len(pieces) else self.tokenizers.src.decode(kept)

    def _decode(self, outputs: list[Output], blank: Translation) -> Translation:
        """Fill in what stands for a line without output."""
        if not outputs:
            self.report.failed += 1
            return replace(blank, score=float("-inf"), nbest=(("", float("-inf")),))
        lines = [found.text.replace("\r", " ").replace("\n", " ") for found in outputs]
        self.report.line_breaks += lines[0] != outputs[0].text
        scores = [found.score for found in outputs]
        nbest = tuple(zip(lines, scores, strict=True))
        return replace(blank, text=lines[0], score=scores[0], nbest=nbest)
