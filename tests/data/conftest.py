"""A small parallel corpus on disk."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lightconv_mt.data.corpus import CorpusConfig, SourceConfig, SourceFormat


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes], str]:
    """Writes a file, returns its path."""

    def write_file(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    return write_file


@pytest.fixture
def text_source(write: Callable[[str, bytes], str]) -> Callable[..., SourceConfig]:
    """Writes two line-aligned files, returns the source that reads them."""

    def build(
        src: list[str], tgt: list[str], *, name: str = "a", weight: float = 1.0
    ) -> SourceConfig:
        paths = [
            write(f"{name}.{side}", "".join(f"{line}\n" for line in lines).encode())
            for side, lines in (("src", src), ("tgt", tgt))
        ]
        return SourceConfig(format=SourceFormat.text, src=paths[0], tgt=paths[1], weight=weight)

    return build


@pytest.fixture
def corpus_of(tmp_path: Path) -> Callable[..., CorpusConfig]:
    """A corpus of the given training sources."""

    def build(**sources: SourceConfig) -> CorpusConfig:
        first = next(iter(sources.values()))
        return CorpusConfig(
            src_lang="de",
            tgt_lang="en",
            train=sources,
            valid=first,
            cache_dir=str(tmp_path / "cache"),
        )

    return build
