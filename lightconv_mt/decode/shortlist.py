"""Vocabulary shortlists: which tokens an output may have, by the tokens of its source."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from lightconv_mt.data.encoded import EncodedPairs
from lightconv_mt.data.lexicon import learn_lexicon
from lightconv_mt.data.tokenizer_base import SpecialIds
from lightconv_mt.data.tokenizer_pair import TokenizerPair
from lightconv_mt.decode.trace import Hypothesis, Integers
from lightconv_mt.errors import CheckpointError, ConfigError
from lightconv_mt.whole_files import replace_bytes

FILE = "shortlist.safetensors"  # in a run folder: what decode.shortlist=auto means
AUTO = "auto"
_FORMAT = "lightconv_mt shortlist 1"
_REMEDY = "learn one with scripts/shortlist.py RUN"


class Shortlist:
    """Lists of tokens, each a function of one source and of what its output begins with.

    A search among listed tokens calls them by their places in the list. Special tokens stand
    first, in the same places of every list, then all others by id.

    Attributes:
        ids: the places of the special tokens.
    """

    def __init__(
        self, table: NDArray[np.int32], frequent: NDArray[np.int32], ids: SpecialIds, vocab: int
    ) -> None:
        """Take what a file holds.

        Args:
            table: (source tokens, K) target tokens that go with each source token.
            frequent: (F,) target tokens that go with every source.
            ids: special ids of the target vocabulary.
            vocab: V of the target side.
        """
        self.table, self.frequent = table, frequent
        self._special = np.unique([ids.bos, ids.pad, ids.eos, ids.unk])
        places = self._special.searchsorted([ids.bos, ids.pad, ids.eos, ids.unk]).tolist()
        self.ids = SpecialIds(*places)
        self._always = np.zeros(vocab, np.bool_)
        self._always[frequent] = True

    def tokens(self, source: Sequence[int], prefix: Sequence[int] = ()) -> Integers:
        """The tokens (L,) int64 that outputs of a source may have.

        Args:
            source: its tokens with EOS.
            prefix: tokens that outputs begin with.
        """
        wanted = self._always.copy()
        wanted[self.table[np.asarray(source, np.int64)]] = True
        wanted[np.asarray(prefix, np.int64)] = True
        wanted[self._special] = False
        return np.concatenate([self._special, wanted.nonzero()[0]])

    @classmethod
    def learn(
        cls,
        pairs: EncodedPairs,
        tokenizers: TokenizerPair,
        *,
        per_piece: int,
        frequent: int,
        iterations: int,
        most_pairs: int,
    ) -> "Shortlist":
        """Learn from training pairs; see `learn_lexicon`.

        Args:
            pairs: of training.
            tokenizers: that encoded them.
            per_piece: likeliest target tokens that go with a source token, besides the one that is
                spelled as it is, so that names and numbers can be copied.
            frequent: target tokens that go with every source, the most frequent.
            iterations: of learning.
            most_pairs: sentence pairs to learn from.
        """
        src, tgt = tokenizers.src, tokenizers.tgt
        lexicon = learn_lexicon(
            pairs, tgt_vocab_size=tgt.vocab_size, iterations=iterations, most_pairs=most_pairs
        )
        likely = lexicon.best(src.vocab_size, per_piece, fill=tgt.ids.eos)
        spelled = {piece: n for n, piece in enumerate(tgt.pieces(range(tgt.vocab_size)))}
        same = [spelled.get(piece, tgt.ids.eos) for piece in src.pieces(range(src.vocab_size))]
        table = np.concatenate([likely, np.array(same, np.int32)[:, None]], 1)
        most = (-pairs.count_target_tokens(tgt.vocab_size)).argsort(kind="stable")[:frequent]
        return cls(table, most.astype(np.int32), tgt.ids, tgt.vocab_size)

    def save(self, path: Path, tokenizers: TokenizerPair) -> None:
        """Write a file, whole or not at all."""
        tensors = {"table": self.table, "frequent": self.frequent}
        metadata = {"format": _FORMAT, "tokenizers": tokenizers.digest}
        replace_bytes(path, safetensors.numpy.save(tensors, metadata))

    @classmethod
    def load(cls, path: Path, tokenizers: TokenizerPair) -> "Shortlist":
        """Read a file.

        Raises:
            CheckpointError: when it is damaged or of other tokenizers.
        """
        sizes = tokenizers.src.vocab_size, tokenizers.tgt.vocab_size
        try:
            with safetensors.safe_open(path, "numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise CheckpointError(f"{path} is no shortlist of this version; {_REMEDY}")
                if metadata.get("tokenizers") != tokenizers.digest:
                    raise CheckpointError(
                        f"{path} is of other tokenizers than the run's; {_REMEDY}"
                    )
                table, frequent = file.get_tensor("table"), file.get_tensor("frequent")
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{path} is damaged: {error}; {_REMEDY}") from error
        tokens = np.concatenate([table.ravel(), frequent])
        if table.shape[:1] != sizes[:1] or not ((tokens >= 0) & (tokens < sizes[1])).all():
            raise CheckpointError(f"{path} is damaged: tokens that there are not; {_REMEDY}")
        return cls(table, frequent, tokenizers.tgt.ids, sizes[1])


class Shortlists:
    """The shortlists that a translator is asked for, each read once."""

    def __init__(self, tokenizers: TokenizerPair, run_dir: Path | None) -> None:
        """Look for `auto` in a run folder."""
        self._tokenizers, self._run_dir = tokenizers, run_dir
        self._read: dict[Path, Shortlist] = {}

    def find(self, wanted: str | None) -> Shortlist | None:
        """What `decode.shortlist` names.

        Raises:
            CheckpointError: when there is none, or it is damaged or of other tokenizers.
            ConfigError: when it is auto, and the model is of no run folder.
        """
        if wanted is None:
            return None
        path = shortlist_path(wanted, self._run_dir)
        if path not in self._read:
            self._read[path] = Shortlist.load(path, self._tokenizers)
        return self._read[path]


def shortlist_path(wanted: str, run_dir: Path | None) -> Path:
    """The file that `decode.shortlist` names.

    Raises:
        CheckpointError: when there is none.
        ConfigError: when it is auto, and there is no run folder.
    """
    if wanted == AUTO and run_dir is None:
        raise ConfigError("decode.shortlist=auto is of a run folder; give the path of a file")
    path = run_dir / FILE if wanted == AUTO and run_dir is not None else Path(wanted)
    if not path.is_file():
        raise CheckpointError(f"decode.shortlist: there is no file {path}; {_REMEDY}")
    return path


def places_in(tokens: Integers, wanted: Sequence[int]) -> list[int]:
    """Where wanted tokens stand in a list that has them."""
    order = tokens.argsort()
    places: list[int] = order[tokens[order].searchsorted(np.asarray(wanted, np.int64))].tolist()
    return places


def named(hypotheses: Sequence[Hypothesis], tokens: Integers) -> list[Hypothesis]:
    """Hypotheses of places in a list as those of its tokens."""
    return [replace(each, tokens=tuple(tokens[list(each.tokens)].tolist())) for each in hypotheses]
