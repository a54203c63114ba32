"""The two tokenizers of a run: trained, given or a fairseq model's; kept in its folder."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path

from lightconv_mt.data.fairseq_tokenizer import FairseqTokenizer
from lightconv_mt.data.tokenizer import (
    Tokenizer,
    TokenizerConfig,
    TokenizerKind,
    Vocabulary,
    train_tokenizer,
)
from lightconv_mt.data.tokenizer_base import BaseTokenizer
from lightconv_mt.errors import CheckpointError, DataError
from lightconv_mt.whole_files import replace_text, sha256_of

# Of the file that a tokenizer writes last.
_ENDINGS = ("model", "dict.txt")
_SUMS = "tokenizer.sha256"


@dataclass(frozen=True)
class TokenizerPair:
    """Source and target tokenizer, one and the same for a joint vocabulary."""

    src: BaseTokenizer
    tgt: BaseTokenizer

    @property
    def joint(self) -> bool:
        """Whether both sides do the same."""
        return self.src.digest == self.tgt.digest

    @property
    def digest(self) -> str:
        """sha256 of both."""
        return hashlib.sha256((self.src.digest + self.tgt.digest).encode()).hexdigest()

    def save(self, run_dir: Path) -> None:
        """Write the files of `tokenizer`, or of `tokenizer.src` and then `tokenizer.tgt`.

        Beside them goes `tokenizer.sha256`, which `sha256sum --check` reads too.
        """
        if self.joint:
            self.src.save(run_dir, "tokenizer")
        else:
            self.src.save(run_dir, "tokenizer.src")
            self.tgt.save(run_dir, "tokenizer.tgt")
        sums = [f"{sha256_of(path)}  {path.name}\n" for path in _files(run_dir)]
        replace_text(run_dir / _SUMS, "".join(sums))

    @staticmethod
    def is_saved(run_dir: Path) -> bool:
        """Whether `save` came to its end in a run."""
        last = [
            f"{name}.{ending}" for name in ("tokenizer", "tokenizer.tgt") for ending in _ENDINGS
        ]
        return any((run_dir / name).exists() for name in last)

    @classmethod
    def load(cls, run_dir: Path, config: TokenizerConfig) -> "TokenizerPair":
        """Read what `save` wrote.

        Raises:
            CheckpointError: when a file is missing, broken or not the one that was saved.
        """
        _check_sums(run_dir)
        joint = any((run_dir / f"tokenizer.{ending}").exists() for ending in _ENDINGS)
        names = ("tokenizer", "tokenizer") if joint else ("tokenizer.src", "tokenizer.tgt")
        try:
            if config.kind is not TokenizerKind.fairseq:
                models = [
                    Tokenizer.load(run_dir / f"{name}.model", lowercase=config.lowercase)
                    for name in names
                ]
                return cls(*models)
            dictionaries = [run_dir / f"{name}.dict.txt" for name in names]
            codes = [run_dir / f"{name}.codes" if config.src_codes else None for name in names]
            return _fairseq_pair(config, dictionaries, codes)
        except DataError as error:
            raise CheckpointError(f"{run_dir} has no usable tokenizer: {error}") from error


def _files(run_dir: Path) -> list[Path]:
    """What tokenizers may have written in a run, and is there."""
    names = product(("tokenizer", "tokenizer.src", "tokenizer.tgt"), (*_ENDINGS, "codes"))
    paths = [run_dir / f"{name}.{ending}" for name, ending in names]
    return [path for path in paths if path.exists()]


def _check_sums(run_dir: Path) -> None:
    """Check that a run's tokenizer is the one it was trained with; older runs do not tell.

    Raises:
        CheckpointError: naming the first file that is another.
    """
    sums = run_dir / _SUMS
    try:
        known = sums.read_text(errors="replace") if sums.exists() else ""
        for path in _files(run_dir) if known else ():
            if f"{sha256_of(path)}  {path.name}" not in known.splitlines():
                raise CheckpointError(
                    f"{path} is not the file that the run was trained with (sha256 in {sums}); "
                    f"put that one back"
                )
    except OSError as error:
        raise CheckpointError(
            f"cannot read the tokenizer in {run_dir}: {error.strerror}; make it readable"
        ) from error


def build_tokenizers(
    config: TokenizerConfig, src_sentences: Iterable[str], tgt_sentences: Iterable[str]
) -> TokenizerPair:
    """Load the given models or train new ones on the sentences."""
    if config.src_model is not None:
        models = [Path(path or config.src_model) for path in (config.src_model, config.tgt_model)]
        if config.kind is TokenizerKind.fairseq:
            given = [config.src_codes, config.tgt_codes or config.src_codes]
            return _fairseq_pair(config, models, [Path(path) if path else None for path in given])
        return TokenizerPair(*(Tokenizer.load(path, lowercase=config.lowercase) for path in models))
    if config.vocabulary is Vocabulary.joint:
        both = train_tokenizer(config, chain(src_sentences, tgt_sentences))
        return TokenizerPair(both, both)
    return TokenizerPair(
        train_tokenizer(config, src_sentences), train_tokenizer(config, tgt_sentences)
    )


def _fairseq_pair(
    config: TokenizerConfig, dictionaries: Sequence[Path], codes: Sequence[Path | None]
) -> TokenizerPair:
    """Source and target tokenizer of a fairseq model, from files of each side."""
    sides = zip(dictionaries, codes, (config.src_moses, config.tgt_moses), strict=True)
    return TokenizerPair(
        *(
            FairseqTokenizer.read(
                dictionary,
                merges,
                moses,
                lowercase=config.lowercase,
                joins_pieces=config.joins_pieces,
            )
            for dictionary, merges, moses in sides
        )
    )
