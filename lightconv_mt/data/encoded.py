"""Tokenised pairs in a memory-mapped Arrow file, cached by the digests of corpus and tokenizer."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lightconv_mt.data.corpus import Corpus, SentencePair
from lightconv_mt.data.tokenizer_pair import TokenizerPair
from lightconv_mt.errors import DataError

if TYPE_CHECKING:
    import pyarrow

ROWS_PER_BATCH = 10_000
_FORMAT = 2  # raised when the layout changes, so that old caches are not read

logger = logging.getLogger(__name__)


class EncodedPairs:
    """Token ids of sentence pairs, EOS at the end of both sides, read from disk on demand.

    Attributes:
        corpus_digest: of the text; see `Corpus.digest`.
        source_names: of all sources, also of those without a pair.
        source_sizes: pairs of each.
        src_lengths: (pairs,) tokens, EOS included.
        tgt_lengths: (pairs,) likewise.
    """

    def __init__(self, path: Path) -> None:
        """Map the Arrow file."""
        import pyarrow

        self._path = path

        self._table = pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).read_all()
        metadata = self._table.schema.metadata or {}
        self.corpus_digest = metadata[b"corpus_digest"].decode()
        self.source_sizes: list[int] = json.loads(metadata[b"source_sizes"])
        self.source_names: list[str] = json.loads(metadata[b"source_names"])
        self._columns = {side: _flat_column(self._table, side) for side in ("src", "tgt")}
        self.src_lengths, self.tgt_lengths = (
            np.concatenate(
                [np.diff(offsets) for _, offsets in self._columns[side]] or [np.zeros(0)]
            ).astype(np.int32)
            for side in ("src", "tgt")
        )
        self._starts = np.cumsum([0, *(len(offsets) - 1 for _, offsets in self._columns["src"])])

    def __reduce__(self) -> tuple[type["EncodedPairs"], tuple[Path]]:
        """Other processes map the file themselves."""
        return EncodedPairs, (self._path,)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.src_lengths)

    def get(self, indices: Sequence[int]) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """Ids of the pairs, EOS included."""
        return [(self._row("src", index), self._row("tgt", index)) for index in indices]

    def count_target_tokens(self, vocab_size: int) -> NDArray[np.int64]:
        """How often each target token (V,) stands in the pairs."""
        counts = np.zeros(vocab_size, np.int64)
        for values, _ in self._columns["tgt"]:
            counts += np.bincount(values, minlength=vocab_size)
        return counts

    def texts(self, indices: Sequence[int]) -> list[SentencePair]:
        """The pairs as text."""
        src, tgt = self._table.column("src_text"), self._table.column("tgt_text")
        return [SentencePair(src[index].as_py(), tgt[index].as_py()) for index in indices]

    def _row(self, side: str, index: int) -> NDArray[np.int32]:
        batch = int(np.searchsorted(self._starts, index, side="right")) - 1
        values, offsets = self._columns[side][batch]
        start, end = offsets[index - self._starts[batch] :][:2]
        return values[start:end]


def encode_corpus(corpus: Corpus, tokenizers: TokenizerPair) -> EncodedPairs:
    """Tokenise the training corpus, or read the cache if text and tokenizer are as before.

    The corpus is read in any case, which fills its report.

    Raises:
        DataError: when it cannot be read, or the cache cannot be written.
    """
    text = corpus.digest()
    digest = hashlib.sha256(f"{_FORMAT} {text} {tokenizers.digest}".encode()).hexdigest()[:32]
    folder = corpus.config.cache_folder() / "encoded" / digest
    found = _open_cached(folder)
    if found is not None:
        return found
    temporary = folder.with_name(f".{digest}.tmp-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write(corpus, tokenizers, temporary / "pairs.arrow", corpus_digest=text)
        try:
            temporary.replace(folder)
        except OSError:
            # Another process was first; its content is the same.
            if not (folder / "pairs.arrow").exists():
                raise
        return EncodedPairs(folder / "pairs.arrow")
    except OSError as error:
        raise DataError(
            f"cannot keep the tokenised corpus in {folder.parent}: {error.strerror or error}; "
            f"free some space or set data.cache_dir"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _open_cached(folder: Path) -> EncodedPairs | None:
    """The pairs that a folder holds; a damaged one is removed.

    Raises:
        DataError: when it cannot be removed.
    """
    path = folder / "pairs.arrow"
    try:
        if not path.exists():
            return None
        return EncodedPairs(path)
    except (OSError, ValueError, KeyError) as damage:  # of Arrow, too
        logger.warning("data: %s is damaged; the corpus is tokenised anew", path)
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise DataError(
                f"cannot remove the damaged {folder}: {error.strerror}; remove it, "
                f"or set data.cache_dir"
            ) from damage
    return None


def _write(corpus: Corpus, tokenizers: TokenizerPair, path: Path, *, corpus_digest: str) -> None:
    import pyarrow as pa

    fields = [
        ("src", pa.list_(pa.int32())),
        ("tgt", pa.list_(pa.int32())),
        ("src_text", pa.string()),
        ("tgt_text", pa.string()),
    ]
    schema = pa.schema(fields)
    body = path.with_suffix(".body")
    with pa.OSFile(str(body), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        pairs = corpus.pairs()
        while rows := list(islice(pairs, ROWS_PER_BATCH)):
            texts = [[pair.src for _, pair in rows], [pair.tgt for _, pair in rows]]
            ids = [
                [[*row, tokenizer.ids.eos] for row in tokenizer.encode_batch(side)]
                for tokenizer, side in zip((tokenizers.src, tokenizers.tgt), texts, strict=True)
            ]
            arrays = [
                pa.array(values, type=kind)
                for values, (_, kind) in zip([*ids, *texts], fields, strict=True)
            ]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
    names = list(corpus.report.kept)
    metadata = {
        "corpus_digest": corpus_digest,
        "source_names": json.dumps(names),
        "source_sizes": json.dumps([corpus.report.kept[n] for n in names]),
    }
    table = pa.ipc.open_file(pa.memory_map(str(body))).read_all().replace_schema_metadata(metadata)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    body.unlink()
    with path.open("rb") as written:
        os.fsync(written.fileno())


def _flat_column(
    table: "pyarrow.Table", name: str
) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """Values and offsets of every chunk, without copying."""
    return [
        (chunk.values.to_numpy(zero_copy_only=True), chunk.offsets.to_numpy(zero_copy_only=True))
        for chunk in table.column(name).chunks
    ]
