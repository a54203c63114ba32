"""Checkpoint files of every age are read, and nothing but data is read from them."""

import random
import sys
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from lightconv_mt.errors import CheckpointError
from lightconv_mt.interop.fairseq_checkpoint import FairseqCheckpoint, read_checkpoint


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.pt"


def read(path: Path, state: Any, *, zipped: bool = True) -> FairseqCheckpoint:
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    return read_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_both_formats_of_torch_are_read(path: Path, state: dict[str, Any], zipped: bool) -> None:
    found = read(path, state, zipped=zipped)
    assert (path.read_bytes()[:2] == b"PK") is zipped
    assert found.fields["source_lang"] == "de"
    assert found.num_updates == 12
    assert found.tensors.keys() == state["model"].keys()
    assert all(torch.equal(found.tensors[key], state["model"][key]) for key in found.tensors)
    assert Namespace not in torch.serialization.get_safe_globals()


def test_todays_configuration_is_read(path: Path, state: dict[str, Any]) -> None:
    fields = vars(state["args"])
    model = Namespace(**{k: v for k, v in fields.items() if k not in ("task", "source_lang")})
    task = {"_name": "translation", "source_lang": "fr", "target_lang": "en"}
    found = read(path, {**state, "args": None, "cfg": {"model": model, "task": task, "bpe": None}})
    assert {**found.fields, "source_lang": "de", "_name": ""} == {**fields, "_name": ""}


def test_values_that_are_not_plain_are_known_by_their_type(
    path: Path, state: dict[str, Any]
) -> None:
    state["args"].device, state["args"].inner = torch.ones(3), Namespace(x=1)
    found = read(path, state).fields
    assert (found["device"], found["inner"], found["dropout"]) == ("a Tensor", "a Namespace", 0.1)


def test_so_is_one_in_parts(path: Path, state: dict[str, Any]) -> None:
    model = {
        "_name": "transformer",
        "dropout": 0.1,
        "encoder": {"layers": 3, "learned_pos": True},
        "quant_noise": {"pq": 0.1},
    }
    found = read(path, {"cfg": {"model": model, "task": {}}, "model": state["model"]})
    assert found.fields["arch"] == "transformer"
    assert found.fields["encoder_layers"] == 3
    assert found.fields["encoder_learned_pos"] is True
    assert found.fields["quant_noise_pq"] == 0.1


def test_meters_of_2019_are_no_hindrance(path: Path, state: dict[str, Any]) -> None:
    """Training left objects of fairseq's own in the checkpoints that it wrote then."""
    written = {}
    for name in ("AverageMeter", "TimeMeter", "StopwatchMeter"):
        kind = type(name, (), {"__module__": "fairseq.meters"})
        written[name] = kind()
        written[name].__dict__.update(sum=1.5, count=3)
    with pytest.MonkeyPatch.context() as patch:
        module = type(torch)("fairseq.meters")
        for name, meter in written.items():
            setattr(module, name, type(meter))
        patch.setitem(sys.modules, "fairseq", module)
        patch.setitem(sys.modules, "fairseq.meters", module)
        torch.save(
            {**state, "extra_state": {"train_meters": written}},
            path,
            _use_new_zipfile_serialization=False,
        )
    assert b"cfairseq.meters\nTimeMeter\n" in path.read_bytes()
    assert read_checkpoint(path).num_updates == 12


@pytest.mark.parametrize("zipped", [True, False])
def test_scores_of_numpys_are_no_hindrance(path: Path, state: dict[str, Any], zipped: bool) -> None:
    scores = {"_bleu_counts": np.arange(4), "best": np.float64(34.5), "half": np.float32(1)}
    found = read(path, {**state, "extra_state": {"metrics": [("valid", scores)]}}, zipped=zipped)
    assert found.tensors.keys() == state["model"].keys()
    # Where one counts, it is no number.
    state["args"].dropout = np.float64(0.1)
    assert read(path, state, zipped=zipped).fields["dropout"] == "a Leftover"


def test_objects_of_fairseq_0_10_are_named(path: Path, state: dict[str, Any]) -> None:
    config = OmegaConf.create({"model": {"arch": "transformer"}})
    with pytest.raises(CheckpointError, match=r"omegaconf\..*, as fairseq 0\.10 left it there"):
        read(path, {"args": None, "cfg": config, "model": state["model"]})


@pytest.mark.parametrize("zipped", [True, False])
def test_damage_is_an_error_or_without_effect(
    path: Path, state: dict[str, Any], zipped: bool, thorough: bool
) -> None:
    good = read(path, state, zipped=zipped)
    content, generator = path.read_bytes(), random.Random(5)
    for _ in range(300 if thorough else 30):
        path.write_bytes(content[: generator.randrange(len(content))])
        with pytest.raises(CheckpointError, match="checkpoint.pt"):
            read_checkpoint(path)
        flipped = bytearray(content)
        flipped[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        try:
            found = read_checkpoint(path)
        except CheckpointError as error:
            assert str(path) in str(error)
            continue
        if zipped:  # whose numbers have checksums
            assert found.tensors.keys() == good.tensors.keys()
            assert all(torch.equal(found.tensors[k], good.tensors[k]) for k in good.tensors)


def test_an_archive_that_would_grow_is_refused(path: Path, state: dict[str, Any]) -> None:
    read(path, state)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match="is compressed, which torch.save never does"):
        read_checkpoint(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        archive.filelist += archive.filelist * 3
    with pytest.raises(CheckpointError, match="claims to hold more than its size"):
        read_checkpoint(path)
