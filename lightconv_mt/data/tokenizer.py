"""SentencePiece: a model trained or given, text to ids and back."""

import hashlib
import io
import logging
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path

import sentencepiece

from lightconv_mt.data.moses import MosesConfig
from lightconv_mt.data.sampling import SubwordSampler
from lightconv_mt.data.tokenizer_base import BaseTokenizer, SpecialIds, encodable
from lightconv_mt.errors import ConfigError, DataError
from lightconv_mt.whole_files import replace_bytes

logger = logging.getLogger(__name__)


class TokenizerKind(Enum):
    """SentencePiece's model types that this library trains, and what a fairseq model reads."""

    unigram = "unigram"
    bpe = "bpe"
    fairseq = "fairseq"


class Vocabulary(Enum):
    """One vocabulary for both languages, or one each."""

    joint = "joint"
    separate = "separate"


@dataclass(kw_only=True)
class TokenizerConfig:
    """How text is cut into pieces; given files are used as they are, copied into the run.

    Of kind fairseq the files are dictionaries (`dict.de.txt`) and, to cut words, BPE codes; `moses`
    says how a side's words are made, null that they are parted by spaces.
    """

    kind: TokenizerKind = TokenizerKind.bpe
    vocab_size: int = 8000
    vocabulary: Vocabulary = Vocabulary.joint
    byte_fallback: bool = True
    character_coverage: float = 1.0
    normalization: str = "nmt_nfkc"
    lowercase: bool = False  # of sources and targets; such a model is scored without case
    sample_sentences: int = 2_000_000  # that the vocabulary is learned from, drawn with `seed`
    seed: int = 1
    num_threads: int = 1  # unigram vocabularies depend on it, so it is pinned
    src_model: str | None = None  # SentencePiece model or dictionary; alone it serves both sides
    tgt_model: str | None = None
    src_codes: str | None = None  # kind fairseq: BPE codes; alone they serve both sides
    tgt_codes: str | None = None
    src_moses: MosesConfig | None = None
    tgt_moses: MosesConfig | None = None
    joins_pieces: bool = False  # kind fairseq without codes: whether outputs lose their @@
    sampling: float = (
        0.0  # in training only: BPE-dropout probability, or the unigram sampler's alpha
    )

    def __post_init__(self) -> None:
        for key in ("vocab_size", "sample_sentences", "num_threads"):
            if getattr(self, key) < 1:
                raise ConfigError(f"tokenizer.{key} is {getattr(self, key)}; give 1 or more")
        if not 0.9 <= self.character_coverage <= 1.0:
            raise ConfigError(
                f"tokenizer.character_coverage is {self.character_coverage}; give 0.9 to 1.0"
            )
        if not 0.0 <= self.sampling < 1.0:
            raise ConfigError(f"tokenizer.sampling is {self.sampling}; give a value in [0, 1)")
        if self.tgt_model is not None and self.src_model is None:
            raise ConfigError(
                "tokenizer.tgt_model is given without tokenizer.src_model; "
                "give both, or src_model alone"
            )
        if self.tgt_codes is not None and self.src_codes is None:
            raise ConfigError(
                "tokenizer.tgt_codes is given without tokenizer.src_codes; "
                "give both, or src_codes alone"
            )
        if self.kind is TokenizerKind.fairseq:
            if self.src_model is None:
                raise ConfigError(
                    "tokenizer.kind=fairseq has no vocabulary of its own; "
                    "give tokenizer.src_model and tokenizer.tgt_model, the dict.*.txt files"
                )
        elif self.src_codes or self.src_moses or self.tgt_moses or self.joins_pieces:
            raise ConfigError(
                "tokenizer.src_codes, src_moses, tgt_moses and joins_pieces belong to "
                "tokenizer.kind=fairseq; set it, or leave them out"
            )


# The numbering of published fairseq models, so that their embeddings need no shuffling.
TRAINED_IDS = SpecialIds(bos=0, pad=1, eos=2, unk=3)


class Tokenizer(BaseTokenizer):
    """One SentencePiece model; encoding adds neither BOS nor EOS."""

    def __init__(self, model: bytes, *, name: str, lowercase: bool = False) -> None:
        """Load a serialised model.

        Args:
            model: the bytes of a .model file.
            name: what errors call it.
            lowercase: whether text is lower-cased before it is encoded.

        Raises:
            DataError: when it is empty, broken or lacks BOS, EOS or the unknown piece.
        """
        self.model, self.lowercase = model, lowercase
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except (RuntimeError, TypeError) as error:
            raise DataError(
                f"{name} is no SentencePiece model; give a .model file that spm_train made"
            ) from error
        if not self._processor.get_piece_size():
            raise DataError(
                f"{name} is an empty SentencePiece model; give a .model file that spm_train made"
            )
        special = {"BOS": self._processor.bos_id(), "EOS": self._processor.eos_id()}
        for token, number in special.items():
            if number < 0:
                raise DataError(
                    f"{name} has no {token} piece; train it with {token.lower()}_id set"
                )

    @classmethod
    def load(cls, path: Path, *, lowercase: bool = False) -> "Tokenizer":
        """Read a .model file."""
        try:
            return cls(path.read_bytes(), name=str(path), lowercase=lowercase)
        except OSError as error:
            raise DataError(
                f"cannot read the SentencePiece model {path}: {error.strerror}"
            ) from error

    @cached_property
    def ids(self) -> SpecialIds:
        """Special ids; a model without a padding piece gets one after its last."""
        processor = self._processor
        pad = processor.pad_id() if processor.pad_id() >= 0 else processor.get_piece_size()
        return SpecialIds(
            bos=processor.bos_id(), pad=pad, eos=processor.eos_id(), unk=processor.unk_id()
        )

    @property
    def vocab_size(self) -> int:
        """V, padding included."""
        return max(int(self._processor.get_piece_size()), self.ids.pad + 1)

    @cached_property
    def _sampler(self) -> SubwordSampler:
        return SubwordSampler(self.model)

    @cached_property
    def digest(self) -> str:
        """sha256 of the model and of what happens before it."""
        return hashlib.sha256(self.model + b"lowercase" * self.lowercase).hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several sentences."""
        cased = (text.lower() for text in texts) if self.lowercase else texts
        encoded: list[list[int]] = self._processor.encode([encodable(text) for text in cased])
        return encoded

    def encode_sampled(self, texts: Sequence[str], *, alpha: float, seed: int) -> list[list[int]]:
        """Ids of one random segmentation of each sentence: BPE-dropout, or unigram sampling.

        Args:
            texts: sentences.
            alpha: BPE-dropout probability, or smoothing of the unigram sampler.
            seed: decides the result.
        """
        generator = random.Random(seed)
        return [
            self._sampler.sample(ids, alpha=alpha, generator=generator)
            for ids in self.encode_batch(texts)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special ones are dropped."""
        special = {self.ids.bos, self.ids.pad, self.ids.eos}
        text: str = self._processor.decode([number for number in ids if number not in special])
        return text

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The pieces' own spelling."""
        size = self._processor.get_piece_size()
        return [self._processor.id_to_piece(number) if number < size else "<pad>" for number in ids]

    def spell_text(self, text: str) -> list[str]:
        """Characters of each piece of a sentence; U+FFFD stands for one that is cut into bytes."""
        cased = text.lower() if self.lowercase else text
        return _spelled(self._processor.encode(encodable(cased), out_type=str))

    def spell(self, ids: Sequence[int]) -> list[str]:
        """Characters of each id in the decoded text."""
        special = {self.ids.bos, self.ids.pad, self.ids.eos}
        unknown = self._processor.decode([self.ids.unk]).strip()
        spelled = _spelled(self.pieces(ids))
        for place, number in enumerate(ids):
            if number in special:
                spelled[place] = ""
            elif number == self.ids.unk:
                spelled[place] = unknown
        return spelled

    def save(self, run_dir: Path, name: str) -> None:
        """Write `NAME.model`."""
        replace_bytes(run_dir / f"{name}.model", self.model)


_BYTE = re.compile("<0x([0-9A-F]{2})>")


def _spelled(pieces: Iterable[str]) -> list[str]:
    """Characters of pieces; the last byte of a character stands for all of it."""
    spelled: list[str] = []
    within = False  # a character, on the way from its last byte to its first
    for piece in reversed(list(pieces)):
        byte = _BYTE.fullmatch(piece)
        if byte is None:
            spelled.append(piece.replace("\u2581", ""))
        else:
            spelled.append("" if within else "\ufffd")
        within = byte is not None and int(byte[1], 16) >> 6 == 2  # 10xxxxxx is not the first
    return spelled[::-1]


def train_tokenizer(config: TokenizerConfig, sentences: Iterable[str]) -> Tokenizer:
    """Learn a vocabulary from a seeded sample of the sentences.

    Raises:
        DataError: when there is no text or too little for the asked vocabulary size, or
            no such normalisation.
    """
    sample = _draw_sample(
        (text.lower() for text in sentences) if config.lowercase else sentences,
        config.sample_sentences,
        config.seed,
    )
    if not sample:
        raise DataError("no text to learn a vocabulary from; check the training data")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample),
            model_writer=model,
            model_type=config.kind.value,
            vocab_size=config.vocab_size,
            byte_fallback=config.byte_fallback,
            character_coverage=config.character_coverage,
            normalization_rule_name=config.normalization,
            num_threads=config.num_threads,
            bos_id=TRAINED_IDS.bos,
            pad_id=TRAINED_IDS.pad,
            eos_id=TRAINED_IDS.eos,
            unk_id=TRAINED_IDS.unk,
            max_sentence_length=1 << 16,
            minloglevel=2,
        )
    except (RuntimeError, ValueError, OSError) as error:
        cause = " ".join(str(error).split()).rpartition("] ")[2].rstrip(".")
        size = "raise" if "smaller" in cause else "lower"
        remedy = (
            "set tokenizer.normalization to nmt_nfkc, nfkc, nmt_nfkc_cf, nfkc_cf or identity"
            if "charsmap" in cause
            else f"{size} tokenizer.vocab_size or give other text"
        )
        raise DataError(
            f"cannot learn {config.vocab_size} pieces from {len(sample)} sentences ({cause}); "
            f"{remedy}"
        ) from error
    return Tokenizer(model.getvalue(), name="the new tokenizer", lowercase=config.lowercase)


def _draw_sample(sentences: Iterable[str], size: int, seed: int) -> list[str]:
    """A uniform sample of non-empty sentences in their order (reservoir sampling)."""
    generator = random.Random(seed)
    kept: list[tuple[int, str]] = []
    for index, text in enumerate(encodable(text) for text in sentences if text.strip()):
        if len(kept) < size:
            kept.append((index, text))
        elif (place := generator.randrange(index + 1)) < size:
            kept[place] = (index, text)
    return [text for _, text in sorted(kept)]
