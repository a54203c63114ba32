"""A run folder made of a fairseq checkpoint, its dictionaries and its BPE codes."""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from lightconv_mt import whole_files
from lightconv_mt.config import RuntimeConfig, TrainRunConfig
from lightconv_mt.data.batching import BatchConfig
from lightconv_mt.data.corpus import CorpusConfig, SourceConfig, SourceFormat
from lightconv_mt.data.fairseq_dictionary import SPECIAL_SYMBOLS, FairseqDictionary
from lightconv_mt.data.moses import MosesConfig, observe_moses
from lightconv_mt.data.tokenizer import TokenizerConfig, TokenizerKind, Vocabulary
from lightconv_mt.data.tokenizer_pair import TokenizerPair, build_tokenizers
from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.errors import CheckpointError, ConfigError
from lightconv_mt.interop.fairseq import import_checkpoint
from lightconv_mt.interop.fairseq_checkpoint import FairseqCheckpoint, read_checkpoint
from lightconv_mt.model.transformer import ModelConfig
from lightconv_mt.train import storage
from lightconv_mt.train.checkpoint import CheckpointConfig
from lightconv_mt.train.config import LoopConfig
from lightconv_mt.train.optim import OptimConfig
from lightconv_mt.train.schedule import InverseSqrtConfig
from lightconv_mt.typed import to_yaml

logger = logging.getLogger(__name__)

_NOTE = """\
# Imported from a fairseq checkpoint, see average/state.json. `model` and `tokenizer` are its own,
# `data` says where it was trained; the other parts are defaults that nothing was trained with.
"""


LANGUAGE = r"[\w-]{1,20}"


@dataclass(kw_only=True)
class ImportConfig:
    """What to import; None is read off the checkpoint or the dictionaries."""

    checkpoint: str  # checkpoint_best.pt, model.pt or the like
    dict_src: str  # dict.de.txt of the source language
    dict_tgt: str
    out: str  # the run folder to be made
    bpe_codes: str | None = None  # None: text has its pieces parted by spaces already
    bpe_codes_tgt: str | None = None  # where each language has codes of its own
    src_lang: str | None = None
    tgt_lang: str | None = None
    moses: bool | None = None  # whether Moses makes the words; None: if there are codes
    normalize: bool | None = None  # Moses: quotes and dashes to ASCII
    split_dashes: bool | None = None  # Moses: well @-@ known
    escape: bool | None = None  # Moses: &amp;
    lowercase: bool | None = None
    joins_pieces: bool = False  # without codes: whether outputs lose their @@

    def __post_init__(self) -> None:
        for key in ("checkpoint", "dict_src", "dict_tgt", "out"):
            if not getattr(self, key).strip():
                raise ConfigError(f"{key} is empty; give a path")
        for key in ("src_lang", "tgt_lang"):
            given = getattr(self, key)
            if given is not None and not re.fullmatch(LANGUAGE, given, re.ASCII):
                raise ConfigError(f"{key} is {given!r}; give a code such as de, or leave it out")
        if not Path(self.out).name:
            raise ConfigError(f"out={self.out} has no name of its own; give a folder to be made")
        if self.bpe_codes_tgt is not None and self.bpe_codes is None:
            raise ConfigError("bpe_codes_tgt is given without bpe_codes; give both, or bpe_codes")


def import_run(config: ImportConfig) -> Path:
    """Make a run folder, whole or not at all.

    Returns:
        The folder, which `lcmt-translate`, `lcmt-eval` and `lcmt-train start_from=...` open.

    Raises:
        CheckpointError: when the checkpoint cannot be imported as it is, or `out` is there.
        DataError: when a dictionary or the codes are broken.
        ConfigError: when something is to be given, or to be installed.
    """
    out = Path(config.out)
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise CheckpointError(f"out={out} is there already; choose another folder")
    checkpoint = read_checkpoint(Path(config.checkpoint))
    dictionaries = [
        FairseqDictionary.read(Path(path)) for path in (config.dict_src, config.dict_tgt)
    ]
    tokenizer = _tokenizer_config(config, checkpoint, *dictionaries)
    model, parameters = import_checkpoint(
        checkpoint, src_vocab_size=len(dictionaries[0]), tgt_vocab_size=len(dictionaries[1])
    )
    run = _run_config(config, checkpoint, model, tokenizer)
    tokenizers = build_tokenizers(tokenizer, [], [])
    provenance = {
        "imported": {
            name: {"path": path, "sha256": whole_files.sha256_of(Path(path))}
            for name, path in (
                ("checkpoint", config.checkpoint),
                ("dict_src", config.dict_src),
                ("dict_tgt", config.dict_tgt),
                ("bpe_codes", config.bpe_codes),
                ("bpe_codes_tgt", config.bpe_codes_tgt),
            )
            if path is not None
        },
        "arch": checkpoint.fields["arch"],
        "num_updates": checkpoint.num_updates,
    }
    with _appearing(out) as folder:
        whole_files.replace_text(folder / "config.yaml", _NOTE + to_yaml(run))
        tokenizers.save(folder)
        _write_weights(folder / "average", parameters, json.dumps(provenance, indent=1))
    _report(out, model, tokenizer, tokenizers, parameters)
    return out


def _tokenizer_config(
    config: ImportConfig,
    checkpoint: FairseqCheckpoint,
    src: FairseqDictionary,
    tgt: FairseqDictionary,
) -> TokenizerConfig:
    """How text becomes the tokens of the dictionaries, as far as they show it."""
    sides = {"src": src, "tgt": tgt}
    if config.bpe_codes is not None:
        for side, dictionary in sides.items():
            if not any(symbol.endswith("@@") for symbol in _pieces(dictionary)):
                raise ConfigError(
                    f"dict_{side} has no piece that ends in @@, so the model's text was not cut by "
                    f"subword-nmt; leave out bpe_codes and give text with its pieces parted"
                )
    moses: dict[str, MosesConfig | None] = dict.fromkeys(sides)
    if config.moses or (config.moses is None and config.bpe_codes is not None):
        for side, dictionary in sides.items():
            moses[side] = observe_moses(_pieces(dictionary), lang=_lang(config, checkpoint, side))
    for key in ("normalize", "split_dashes", "escape"):
        value = getattr(config, key)
        for each in moses.values():
            if value is not None and each is not None:
                setattr(each, key, value)
            elif value is not None:
                raise ConfigError(f"{key} belongs to Moses' words; add moses=true or leave it out")
    return TokenizerConfig(
        kind=TokenizerKind.fairseq,
        vocab_size=len(src),
        vocabulary=Vocabulary.joint if src.symbols == tgt.symbols else Vocabulary.separate,
        lowercase=_lowercase(config, src, tgt),
        src_model=config.dict_src,
        tgt_model=config.dict_tgt,
        src_codes=config.bpe_codes,
        tgt_codes=config.bpe_codes_tgt,
        src_moses=moses["src"],
        tgt_moses=moses["tgt"],
        joins_pieces=config.joins_pieces,
    )


def _lowercase(config: ImportConfig, src: FairseqDictionary, tgt: FairseqDictionary) -> bool:
    if config.lowercase is not None:
        return config.lowercase
    found = {
        side: any(piece != piece.lower() for piece in _pieces(dictionary))
        for side, dictionary in (("src", src), ("tgt", tgt))
        if any(piece.lower() != piece.upper() for piece in _pieces(dictionary))
    }
    if len(set(found.values())) > 1:
        cased = next(side for side, upper in found.items() if upper)
        raise ConfigError(
            f"dict_{cased} has upper case and the other dictionary none; say lowercase=true if all "
            f"text was lower-cased, else lowercase=false"
        )
    return bool(found) and not any(found.values())


def _pieces(dictionary: FairseqDictionary) -> list[str]:
    return dictionary.symbols[len(SPECIAL_SYMBOLS) :]


def _lang(config: ImportConfig, checkpoint: FairseqCheckpoint, side: str) -> str:
    given: str | None = getattr(config, f"{side}_lang")
    found = checkpoint.fields.get({"src": "source_lang", "tgt": "target_lang"}[side])
    named = isinstance(found, str) and re.fullmatch(LANGUAGE, found, re.ASCII)
    if given is None and not named:
        raise ConfigError(
            f"{checkpoint.path} does not name its languages; give {side}_lang, a code such as de"
        )
    return given if given is not None else str(found)


def _run_config(
    config: ImportConfig,
    checkpoint: FairseqCheckpoint,
    model: ModelConfig,
    tokenizer: TokenizerConfig,
) -> TrainRunConfig:
    src_lang, tgt_lang = (_lang(config, checkpoint, side) for side in ("src", "tgt"))
    where = checkpoint.fields.get("data")
    where = where[0] if isinstance(where, list | tuple) and where else where
    place = Path(where if isinstance(where, str) and where.isprintable() and where else "unknown")

    def source(split: str) -> SourceConfig:
        stem = f"{split}.{src_lang}-{tgt_lang}"
        return SourceConfig(
            format=SourceFormat.text,
            src=str(place / f"{stem}.{src_lang}"),
            tgt=str(place / f"{stem}.{tgt_lang}"),
        )

    return TrainRunConfig(
        run_dir=config.out,
        data=CorpusConfig(
            src_lang=src_lang,
            tgt_lang=tgt_lang,
            train={"fairseq": source("train")},
            valid=source("valid"),
        ),
        tokenizer=tokenizer,
        batch=BatchConfig(),
        model=model,
        optim=OptimConfig(),
        schedule=InverseSqrtConfig(),
        train=LoopConfig(),
        checkpoint=CheckpointConfig(),
        decode=DecodeConfig(),
        runtime=RuntimeConfig(),
    )


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name when it is full and is gone if it never is."""
    temporary = whole_files.aside(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        whole_files.remove_leftovers(out)
        temporary.mkdir()
        yield temporary
        whole_files.announce("rename", out)
        os.replace(temporary, out)
    except OSError as error:
        raise CheckpointError(
            f"cannot write out={out}: {error.strerror or error}; choose another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_weights(folder: Path, parameters: dict[str, Tensor], provenance: str) -> None:
    storage.write_folder(
        folder,
        {
            "model.safetensors": partial(save_file, parameters),
            "state.json": lambda path: path.write_text(provenance),
        },
        size=sum(tensor.nbytes for tensor in parameters.values()),
    )


def _report(
    out: Path,
    model: ModelConfig,
    tokenizer: TokenizerConfig,
    tokenizers: TokenizerPair,
    parameters: dict[str, Tensor],
) -> None:
    numbers = sum(tensor.numel() for tensor in parameters.values())
    mixers = {model.mixer.name: None, (model.decoder_mixer or model.mixer).name: None}
    logger.info(
        "%s: %s, %d + %d layers of %d channels, %s parameters, %s and %s tokens",
        *(out, " and ".join(mixers), model.encoder_layers, model.decoder_layers, model.dim),
        *(f"{numbers:,}", f"{tokenizers.src.vocab_size:,}", f"{tokenizers.tgt.vocab_size:,}"),
    )
    for side, moses in (("source", tokenizer.src_moses), ("target", tokenizer.tgt_moses)):
        cut = tokenizer.src_codes is not None
        steps = [
            *(
                _moses_steps(moses)
                if moses
                else [f"{'words' if cut else 'tokens'} parted by spaces"]
            ),
            *(["lower-cased"] if tokenizer.lowercase else []),
            *(["cut by BPE"] if cut else []),
        ]
        logger.info("%s text: %s", side, ", ".join(steps))


def _moses_steps(moses: MosesConfig) -> list[str]:
    return [
        *(["punctuation normalised"] if moses.normalize else []),
        f"Moses' words ({moses.lang})",
        f"dashes {'' if moses.split_dashes else 'not '}split",
        *([] if moses.escape else ["not escaped"]),
    ]
