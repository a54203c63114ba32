"""Parallel sentences from files, `datasets` or the embedded generator; filtered and counted."""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from lightconv_mt.data.lines import BadUtf8, check_rereadable, read_lines
from lightconv_mt.errors import ConfigError, DataError

EXAMPLES_PER_RULE = 3

logger = logging.getLogger(__name__)


class SourceFormat(Enum):
    """Where parallel sentences come from."""

    cldr = "cldr"
    text = "text"
    tsv = "tsv"
    json = "json"
    parquet = "parquet"
    hub = "hub"


@dataclass(kw_only=True)
class SourceConfig:
    """One parallel source.

    `text` reads the two line-aligned files src and tgt. The other formats read `path`; there src
    and tgt name columns: numbers from 0 for tsv, names for json, parquet and hub (dots reach into
    nested fields, as in translation.en). `hub` reads a data set of the Hugging Face hub, or one in
    a folder: its files, or what `save_to_disk` wrote.
    """

    format: SourceFormat
    src: str | None = None
    tgt: str | None = None
    path: str | None = None
    subset: str | None = None
    split: str | None = None
    revision: str | None = None  # of a hub data set: a commit, tag or branch
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight > 0.0:
            raise ConfigError(
                f"the weight of a data source is {self.weight}; give a positive number"
            )
        if self.format is SourceFormat.text and (not self.src or not self.tgt):
            raise ConfigError(
                "a data source of format text needs two files; give src=FILE and tgt=FILE"
            )
        if self.format not in (SourceFormat.text, SourceFormat.cldr) and not self.path:
            raise ConfigError(f"a data source of format {self.format.name} needs path=...")


@dataclass(kw_only=True)
class FilterConfig:
    """Which training pairs are dropped; validation and test data are never filtered."""

    max_words: int = 250
    max_chars: int = 2000
    max_ratio: float = 9.0  # of word counts, where both sides have more than five
    drop_duplicates: bool = True
    drop_copies: bool = False  # pairs whose two sides are the same

    def __post_init__(self) -> None:
        for key in ("max_words", "max_chars"):
            if getattr(self, key) < 1:
                raise ConfigError(f"data.filter.{key} is {getattr(self, key)}; give 1 or more")
        if not self.max_ratio >= 1.0:
            raise ConfigError(f"data.filter.max_ratio is {self.max_ratio}; give 1 or more")


@dataclass(kw_only=True)
class CorpusConfig:
    """Training sources by name, validation and test data."""

    src_lang: str
    tgt_lang: str
    train: dict[str, SourceConfig]
    valid: SourceConfig | None
    test: SourceConfig | None = None
    filter: FilterConfig = field(default_factory=FilterConfig)
    on_bad_utf8: BadUtf8 = BadUtf8.replace
    temperature: float = 1.0  # above 1 draws small sources more often
    cache_dir: str | None = None  # None: lightconv_mt in $XDG_CACHE_HOME or ~/.cache

    def __post_init__(self) -> None:
        if not self.train:
            raise ConfigError("data.train has no source; give at least one")
        if not self.temperature >= 1.0:
            raise ConfigError(f"data.temperature is {self.temperature}; give 1 or more")

    def cache_folder(self) -> Path:
        """Where prepared data is kept between runs."""
        if self.cache_dir is not None:
            return Path(self.cache_dir)
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightconv_mt"


class SentencePair(NamedTuple):
    """A sentence and its translation."""

    src: str
    tgt: str


@dataclass
class FilterReport:
    """How many pairs each rule dropped, with examples."""

    kept: Counter[str] = field(default_factory=Counter)
    dropped: dict[str, Counter[str]] = field(default_factory=dict)
    examples: dict[tuple[str, str], list[SentencePair]] = field(default_factory=dict)

    def drop(self, source: str, rule: str, pair: SentencePair) -> None:
        """Count a dropped pair."""
        self.dropped.setdefault(source, Counter())[rule] += 1
        shown = self.examples.setdefault((source, rule), [])
        if len(shown) < EXAMPLES_PER_RULE:
            shown.append(pair)

    def lines(self) -> Iterator[str]:
        """The report as text."""
        for source, kept in self.kept.items():
            yield f"{source}: {kept:,} pairs kept"
            for rule, count in self.dropped.get(source, Counter()).most_common():
                yield f"{source}: {count:,} pairs dropped: {rule}"
                for pair in self.examples[source, rule]:
                    yield f"    {pair.src[:80]!r} | {pair.tgt[:80]!r}"


class Corpus:
    """Training pairs of every source, read and filtered anew on each pass, never held in memory."""

    def __init__(self, config: CorpusConfig) -> None:
        """Keep the configuration; nothing is read yet."""
        self.config = config
        self.report = FilterReport()

    def pairs(self) -> Iterator[tuple[str, SentencePair]]:
        """Source name and pair, source by source; fills `report`."""
        self.report = FilterReport()
        seen: set[bytes] = set()
        for name, source in self.config.train.items():
            self.report.kept[name] = 0  # so that a source of which nothing is kept is told of too
            for pair in read_source(source, self.config):
                rule = broken_rule(pair, self.config.filter, seen)
                if rule is None:
                    self.report.kept[name] += 1
                    yield name, pair
                else:
                    self.report.drop(name, rule, pair)
        if not self.report.kept.total():
            raise DataError(
                "no training pair is left after filtering; see data.filter and the data report"
            )

    def digest(self) -> str:
        """sha256 over the names of the sources and every pair that training reads."""
        digest = hashlib.sha256("\0".join((*self.config.train, "")).encode())
        for name, pair in self.pairs():
            digest.update("\0".join((name, *pair, "")).encode("utf-8", "replace"))
        return digest.hexdigest()

    def src_sentences(self) -> Iterator[str]:
        """Source sides."""
        return (pair.src for _, pair in self.pairs())

    def tgt_sentences(self) -> Iterator[str]:
        """Target sides."""
        return (pair.tgt for _, pair in self.pairs())


def read_corpus(config: CorpusConfig) -> Corpus:
    """The training corpus of a configuration."""
    return Corpus(config)


def read_source(
    config: SourceConfig, corpus: CorpusConfig, *, start: int = 0
) -> Iterator[SentencePair]:
    """Pairs of one source, unfiltered.

    Args:
        config: the source.
        corpus: languages, encoding and cache.
        start: pairs to leave out at the beginning.

    Raises:
        DataError: when it cannot be read, can be read only once, or the two sides have different
            numbers of lines.
    """
    for path in files_of(config):
        check_rereadable(path)
    if config.format in (SourceFormat.json, SourceFormat.parquet, SourceFormat.hub):
        return _read_tables(config, corpus, start)
    return islice(_READERS[config.format](config, corpus), start, None)


def files_of(config: SourceConfig) -> list[Path]:
    """What a source names on the disk, there or not: files, or the folder of a data set."""
    named = (config.src, config.tgt) if config.format is SourceFormat.text else (config.path,)
    return [Path(path) for path in named if path is not None]


def _read_text(config: SourceConfig, corpus: CorpusConfig) -> Iterator[SentencePair]:
    assert config.src is not None and config.tgt is not None
    sides = (read_lines(path, on_bad_utf8=corpus.on_bad_utf8) for path in (config.src, config.tgt))
    counts = [0, 0]
    for pair in zip_longest(*sides):
        for side, text in enumerate(pair):
            counts[side] += text is not None
        if counts[0] == counts[1]:
            yield SentencePair(*pair)
    if counts[0] != counts[1]:
        raise DataError(
            f"{config.src} has {counts[0]:,} lines but {config.tgt} has {counts[1]:,}; "
            f"line n of one must be the translation of line n of the other"
        )


def _read_tsv(config: SourceConfig, corpus: CorpusConfig) -> Iterator[SentencePair]:
    assert config.path is not None
    src, tgt = _column_number(config.src, 0), _column_number(config.tgt, 1)
    for number, line in enumerate(read_lines(config.path, on_bad_utf8=corpus.on_bad_utf8), start=1):
        cells = line.split("\t")
        if len(cells) <= max(src, tgt):
            raise DataError(
                f"{config.path}, line {number}: {len(cells)} columns, "
                f"but columns {src} and {tgt} (from 0) are wanted"
            )
        yield SentencePair(cells[src], cells[tgt])


def _read_tables(config: SourceConfig, corpus: CorpusConfig, start: int) -> Iterator[SentencePair]:
    """JSON lines, parquet or a hub data set, row by row through the `datasets` package."""
    assert config.path is not None
    columns = (config.src or corpus.src_lang, config.tgt or corpus.tgt_lang)
    for number, row in enumerate(_open_tables(config, start), start=start + 1):
        sides = []
        for column in columns:
            value: Any = row
            for name in column.split("."):
                if not isinstance(value, dict) or name not in value:
                    there = ", ".join(value) if isinstance(value, dict) else "no columns"
                    raise DataError(
                        f"{config.path}, row {number}: no column {column}; there is {there}"
                    )
                value = value[name]
            if not isinstance(value, str):
                raise DataError(
                    f"{config.path}, row {number}: {column} is {value!r}, no text; mend or drop it"
                )
            sides.append(value)
        yield SentencePair(*sides)


def _open_tables(config: SourceConfig, start: int) -> Iterator[dict[str, Any]]:
    path, split = str(config.path), config.split or "train"
    local = Path(path).exists()
    if config.format is not SourceFormat.hub and not local:
        raise DataError(f"cannot read {path}: no such file")
    nothing = DataError(f"{path} has no row; give a file with some")
    try:
        table = _load_table(config, path, split, local=local)
        empty = start == 0
        for row in table.skip(start) if start else table:
            empty = False
            yield row
        if empty:
            raise nothing
    except DataError:
        raise
    except StopIteration as error:  # what some versions of datasets make of an empty file
        raise nothing from error
    except Exception as error:  # datasets raises whatever its readers and the network do
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        remedy = "; offline, give path=FOLDER of a local copy, or files with data=text, tsv, json"
        hint = "" if local else remedy
        raise DataError(f"cannot load {path} (split {split}): {cause}{hint}") from error


def _load_table(config: SourceConfig, path: str, split: str, *, local: bool) -> Any:
    """A `Dataset` or `IterableDataset`."""
    import datasets

    datasets.disable_progress_bars()
    # It tells of every retry; what fails in the end is told in one line.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if config.format is not SourceFormat.hub:
        kind = config.format.value
        return datasets.load_dataset(kind, data_files=path, split="train", streaming=True)
    if Path(path, "state.json").exists():  # one split, written by save_to_disk
        return datasets.load_from_disk(path)
    if Path(path, "dataset_dict.json").exists():
        splits = datasets.load_from_disk(path)
        if split not in splits:
            raise DataError(f"{path} has no split {split}; there is {', '.join(splits)}")
        return splits[split]
    if not local:
        logger.info("data: fetching %s (split %s), unless it is cached", path, split)
    return datasets.load_dataset(
        path,
        config.subset,
        split=split,
        revision=config.revision,
        download_config=datasets.DownloadConfig(max_retries=1, local_files_only=local),
    )


def _read_cldr(config: SourceConfig, corpus: CorpusConfig) -> Iterator[SentencePair]:
    from lightconv_mt.data.cldr import cached_pairs

    folder = corpus.cache_folder()
    yield from cached_pairs(
        corpus.src_lang, corpus.tgt_lang, split=config.split or "train", cache_dir=folder
    )


def _column_number(value: str | None, default: int) -> int:
    if value is None:
        return default
    if not value.isdigit():
        raise ConfigError(f"a column of a tsv source is {value!r}; give its number, from 0")
    return int(value)


def broken_rule(pair: SentencePair, config: FilterConfig, seen: set[bytes]) -> str | None:
    """The first rule that drops the pair; `seen` holds digests of those kept, and takes its."""
    if not pair.src.strip() or not pair.tgt.strip():
        return "empty side"
    words = [len(side.split()) for side in pair]
    if max(words) > config.max_words or max(map(len, pair)) > config.max_chars:
        return f"longer than {config.max_words} words or {config.max_chars} characters"
    if min(words) > 5 and max(words) / min(words) > config.max_ratio:
        return f"length ratio above {config.max_ratio:g}"
    if config.drop_copies and pair.src == pair.tgt:
        return "target copies the source"
    if config.drop_duplicates:
        digest = pair_digest(pair)
        if digest in seen:
            return "duplicate"
        seen.add(digest)
    return None


def pair_digest(pair: SentencePair) -> bytes:
    """What tells a pair from others: 8 bytes."""
    return hashlib.blake2b("\0".join(pair).encode("utf-8", "replace"), digest_size=8).digest()


_READERS: dict[SourceFormat, Callable[[SourceConfig, CorpusConfig], Iterator[SentencePair]]] = {
    SourceFormat.text: _read_text,
    SourceFormat.tsv: _read_tsv,
    SourceFormat.cldr: _read_cldr,
}
