"""The tokenizers of a run folder: kept, found again, and refused where they are others."""

import shutil
import subprocess
from pathlib import Path

import pytest

from lightconv_mt.data.tokenizer import TokenizerConfig, Vocabulary
from lightconv_mt.data.tokenizer_pair import TokenizerPair, build_tokenizers
from lightconv_mt.errors import CheckpointError

TEXT = [f"the {color} {animal} number {n} sleeps in the garden" for n in range(60)
        for color, animal in (("red", "fox"), ("grey", "wolf"), ("brown", "bear"))]  # fmt: skip
GERMAN = [f"der Vogel Nummer {n} schläft im grünen Garten am Fluss" for n in range(180)]


def test_pairs_are_saved_and_loaded(tmp_path: Path) -> None:
    for vocabulary in Vocabulary:
        folder = tmp_path / vocabulary.value
        folder.mkdir()
        config = TokenizerConfig(vocab_size=330, vocabulary=vocabulary)
        pair = build_tokenizers(config, TEXT, GERMAN)
        assert pair.joint is (vocabulary is Vocabulary.joint)
        assert not TokenizerPair.is_saved(folder)
        pair.save(folder)
        assert TokenizerPair.is_saved(folder)
        assert TokenizerPair.load(folder, config).digest == pair.digest


@pytest.mark.parametrize("vocabulary", Vocabulary)
def test_another_tokenizer_than_the_saved_one_is_refused(
    vocabulary: Vocabulary, tmp_path: Path
) -> None:
    config = TokenizerConfig(vocab_size=300, vocabulary=vocabulary)
    for name, texts in {"run": (TEXT, GERMAN), "other": (GERMAN, GERMAN + TEXT[:90])}.items():
        (tmp_path / name).mkdir()
        build_tokenizers(config, *texts).save(tmp_path / name)
    run, other = tmp_path / "run", tmp_path / "other"
    subprocess.run(["sha256sum", "--check", "tokenizer.sha256"], cwd=run, check=True)
    joint = vocabulary is Vocabulary.joint
    name = "tokenizer.model" if joint else "tokenizer.tgt.model"
    kept = (run / name).read_bytes()
    shutil.copy(other / name, run)
    with pytest.raises(CheckpointError, match=f"{name} is not the file that the run was trained"):
        TokenizerPair.load(run, config)
    (run / name).write_bytes(kept)
    assert TokenizerPair.load(run, config).joint == joint
    # One more, which would be read in place of the two, or of none.
    extra = "tokenizer.src.model" if joint else "tokenizer.model"
    (run / extra).write_bytes(kept)
    with pytest.raises(CheckpointError, match=f"{extra} is not the file"):
        TokenizerPair.load(run, config)
    (run / extra).unlink()
    (run / "tokenizer.sha256").unlink()  # as in a run of before
    shutil.copy(other / name, run)
    TokenizerPair.load(run, config)
