"""A corpus made ready for training: its folder locked, written, and given a configuration."""

import logging
import shlex
from dataclasses import replace
from pathlib import Path

from lightconv_mt.config import PrepareConfig
from lightconv_mt.data.corpus import CorpusConfig, SourceConfig, SourceFormat, files_of
from lightconv_mt.data.prepare import PARTS, prepare_corpus, stamps
from lightconv_mt.errors import ConfigError
from lightconv_mt.run_folder import check_same, lock_run, writing
from lightconv_mt.typed import read_yaml, to_plain, to_yaml
from lightconv_mt.whole_files import replace_text

logger = logging.getLogger(__name__)

# None of it decides what is written.
FREE_KEYS = ("out", "part_pairs", "data.cache_dir", "data.temperature")


def prepare_data(config: PrepareConfig) -> int:
    """Write the corpus into `config.out`, from where that stands; returns the exit code."""
    folder = Path(config.out)
    started, finished = folder / "prepare.yaml", folder / "data" / "prepared.yaml"
    ready = prepared(config.data, folder)
    with lock_run(folder, key="out", work="filled"), writing(folder, key="out"):
        if started.exists():
            then, now = read_yaml(started), to_plain(config)
            check_same(folder, then, now, free=FREE_KEYS, remedy="choose another out")
        else:
            _check_free(folder, ready)
            replace_text(started, to_yaml(config))
        gone = [path for path in _text_files(ready) if not path.exists()]
        if finished.exists() and gone:
            logger.warning("%s is gone; all is written anew", gone[0])
            finished.unlink()
        if not finished.exists():
            prepare_corpus(
                config.data,
                folder,
                hold_out_every=config.hold_out_every,
                part_pairs=config.part_pairs,
            )
            finished.parent.mkdir(exist_ok=True)
            replace_text(finished, to_yaml(ready))
        for path in _newer_files(config.data, finished):
            logger.warning("%s has changed since; remove %s to have it in there", path, folder)
    quoted = shlex.quote(str(folder))
    logger.info("%s is ready: lcmt-train --config-dir %s data=prepared", folder, quoted)
    return 0


def _check_free(folder: Path, ready: CorpusConfig) -> None:
    """Refuse a new `out` where something stands that is not ours to replace.

    Raises:
        ConfigError: naming it.
    """
    for path in (*_text_files(ready), *(folder / name for name in ("report.txt", PARTS))):
        if path.exists():
            raise ConfigError(
                f"out={folder} holds {path.name}, which would be written over; "
                f"choose another folder"
            )


def _newer_files(corpus: CorpusConfig, finished: Path) -> list[str]:
    """Files of a corpus that were changed after another was written, as far as they are there."""
    written = finished.stat().st_mtime_ns
    stamped = [stamp for source in _sources(corpus) for stamp in stamps(source)]
    return [path for path, _, changed in stamped if changed > written]


def _text_files(ready: CorpusConfig) -> list[Path]:
    """All that the configuration of a prepared corpus reads."""
    return [path for source in _sources(ready) for path in files_of(source)]


def _sources(corpus: CorpusConfig) -> list[SourceConfig]:
    named = [*corpus.train.values(), corpus.valid, corpus.test]
    return [source for source in named if source is not None]


def prepared(corpus: CorpusConfig, folder: Path) -> CorpusConfig:
    """The configuration that reads what `prepare_corpus` wrote; duplicates are gone already."""
    stem = folder.resolve()

    def text(name: str, weight: float = 1.0) -> SourceConfig:
        return SourceConfig(
            format=SourceFormat.text,
            src=str(stem / f"{name}.src"),
            tgt=str(stem / f"{name}.tgt"),
            weight=weight,
        )

    return replace(
        corpus,
        train={name: text(f"train.{name}", source.weight) for name, source in corpus.train.items()},
        valid=text("valid"),
        test=text("test") if corpus.test is not None else None,
        filter=replace(corpus.filter, drop_duplicates=False),
    )
