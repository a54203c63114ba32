"""Lists of tokens, and the files that hold them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from lightconv_mt.data.tokenizer_base import SpecialIds
from lightconv_mt.decode.shortlist import FILE, Shortlist, Shortlists, named, places_in
from lightconv_mt.decode.trace import Hypothesis
from lightconv_mt.errors import CheckpointError, ConfigError

IDS = SpecialIds(bos=1, pad=9, eos=2, unk=0)  # padding is the last, as a given model may have it
TABLE = np.array([[2, 2], [5, 2], [7, 3], [4, 4]], np.int32)


def pair_of(digest: str = "one", src: int = 4, tgt: int = 10) -> Any:
    source, target = SimpleNamespace(vocab_size=src), SimpleNamespace(vocab_size=tgt, ids=IDS)
    return SimpleNamespace(src=source, tgt=target, digest=digest)


def shortlist() -> Shortlist:
    return Shortlist(TABLE, np.array([8], np.int32), IDS, 10)


def test_a_list_is_of_the_special_tokens_then_of_all_others_by_id() -> None:
    lists = shortlist()
    assert lists.tokens([2, 1]).tolist() == [0, 1, 2, 9, 3, 5, 7, 8]
    assert lists.tokens([2, 2, 1], [6, 9]).tolist() == [0, 1, 2, 9, 3, 5, 6, 7, 8]
    assert lists.tokens([]).tolist() == [0, 1, 2, 9, 8]
    assert lists.ids == SpecialIds(bos=1, pad=3, eos=2, unk=0)


def test_places_are_named_again() -> None:
    tokens = shortlist().tokens([2, 1], [6])
    assert tokens[places_in(tokens, [6, 9, 7, 2])].tolist() == [6, 9, 7, 2]
    assert places_in(tokens, []) == []
    (found,) = named([Hypothesis((5, 4, 2), -1.0, (0.0, 0.0, -1.0))], tokens)
    assert found == Hypothesis((5, 3, 2), -1.0, (0.0, 0.0, -1.0))


def test_a_file_is_read_as_it_was_written_and_once(tmp_path: Path) -> None:
    path = tmp_path / FILE
    shortlist().save(path, pair_of())
    assert [each.name for each in tmp_path.iterdir()] == [FILE]
    shelf = Shortlists(pair_of(), tmp_path)
    found = shelf.find("auto")
    assert found is not None and shelf.find(str(path)) is found
    assert found.tokens([2, 1], [6]).tolist() == shortlist().tokens([2, 1], [6]).tolist()
    assert shelf.find(None) is None


def written(path: Path, metadata: dict[str, str] | None = None, **tensors: Any) -> None:
    whole = {"table": TABLE, "frequent": np.array([8], np.int32), **tensors}
    about = {"format": "lightconv_mt shortlist 1", "tokenizers": "one", **(metadata or {})}
    path.write_bytes(safetensors.numpy.save(whole, about))


def test_what_does_not_fit_is_refused_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / FILE
    remedy = "; learn one with scripts/shortlist.py RUN$"
    with pytest.raises(CheckpointError, match=f"there is no file .*{FILE}{remedy}"):
        Shortlists(pair_of(), tmp_path).find("auto")
    with pytest.raises(ConfigError, match="auto is of a run folder; give the path of a file"):
        Shortlists(pair_of(), None).find("auto")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"metadata": {"tokenizers": "two"}}, "of other tokenizers than the run's"),
        ({"metadata": {"format": "2"}}, "no shortlist of this version"),
        ({"table": TABLE[:3]}, "damaged: tokens that there are not"),
        ({"frequent": np.array([10], np.int32)}, "damaged: tokens that there are not"),
        ({"frequent": np.array([-1], np.int32)}, "damaged: tokens that there are not"),
    ]
    for values, message in cases:
        written(path, **values)
        with pytest.raises(CheckpointError, match=f"{message}{remedy}"):
            Shortlist.load(path, pair_of())
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=f"damaged: .*{remedy}"):
        Shortlist.load(path, pair_of())
    path.write_bytes(safetensors.numpy.save({"table": TABLE}, {}))
    with pytest.raises(CheckpointError, match=f"no shortlist of this version{remedy}"):
        Shortlist.load(path, pair_of())
