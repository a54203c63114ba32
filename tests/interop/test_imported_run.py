"""Imported run folders: complete, used like any other, there whole or not at all."""

import json
import logging
import shutil
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from children import exit_code, start
from deaths import KILLED, die_at_action

from lightconv_mt import trained_run, whole_files
from lightconv_mt.cli import main
from lightconv_mt.config import load_run_config
from lightconv_mt.data.moses import MosesConfig
from lightconv_mt.data.tokenizer import Vocabulary
from lightconv_mt.errors import CheckpointError, ConfigError
from lightconv_mt.imported_run import ImportConfig, import_run
from lightconv_mt.train import storage
from tests.interop.conftest import KINDS, model_of, todays_tensors

CPU = ("runtime.device=cpu", "runtime.threads=1")


@pytest.fixture
def config(tmp_path: Path, state: dict[str, Any], dictionary: Callable[..., str]) -> ImportConfig:
    """A model whose text has its tokens parted by spaces."""
    torch.save(state, tmp_path / "model.pt")
    path = dictionary()
    return ImportConfig(
        checkpoint=str(tmp_path / "model.pt"),
        dict_src=path,
        dict_tgt=path,
        out=str(tmp_path / "runs" / "imported"),
    )


def with_codes(config: ImportConfig, folder: Path, **changes: Any) -> ImportConfig:
    (folder / "codes").write_text("#version: 0.2\nb a</w>\nd e\nf i</w>\n")
    return ImportConfig(**{**vars(config), "bpe_codes": str(folder / "codes"), **changes})


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_folder_holds_all_that_is_needed(config: ImportConfig, tmp_path: Path) -> None:
    out = import_run(config)
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == [
        *("average/manifest.json", "average/model.safetensors", "average/state.json"),
        *("config.yaml", "tokenizer.dict.txt", "tokenizer.sha256"),
    ]
    storage.verify_folder(out / "average")
    run = load_run_config(out)
    assert (run.data.src_lang, run.data.tgt_lang) == ("de", "en")
    assert run.data.train["fairseq"].src == "data-bin/tiny/train.de-en.de"
    assert run.tokenizer.vocabulary is Vocabulary.joint
    provenance = json.loads((out / "average" / "state.json").read_text())
    assert provenance["imported"]["checkpoint"]["path"] == config.checkpoint
    assert (provenance["arch"], provenance["num_updates"]) == ("lightconv_iwslt_de_en", 12)
    for path in (config.checkpoint, config.dict_src):  # none of which is needed any more
        Path(path).unlink()
    translator = trained_run.load_translator(str(out), "auto", run.runtime)
    assert translator.tokenizers.src.encode("ba fi .") == [4, 6, 7]


def test_settings_of_the_text_are_read_off_the_dictionary_or_given(
    config: ImportConfig, tmp_path: Path
) -> None:
    found = load_run_config(import_run(with_codes(config, tmp_path))).tokenizer
    moses = {"normalize": True, "split_dashes": False, "escape": True}
    assert found.src_moses == MosesConfig(lang="de", **moses)
    assert found.tgt_moses == MosesConfig(lang="en", **moses)
    assert found.lowercase
    given: dict[str, Any] = {
        **{"src_lang": "fr", "split_dashes": True, "escape": False, "normalize": False},
        **{"lowercase": False, "out": str(tmp_path / "given")},
    }
    found = load_run_config(import_run(with_codes(config, tmp_path, **given))).tokenizer
    assert found.src_moses == MosesConfig(lang="fr", split_dashes=True, escape=False)
    assert not found.lowercase
    words: dict[str, Any] = {"moses": False, "out": str(tmp_path / "words")}
    found = load_run_config(import_run(with_codes(config, tmp_path, **words))).tokenizer
    assert found.src_codes is not None
    assert found.src_moses is None


def test_each_language_may_have_a_dictionary_and_codes_of_its_own(
    tmp_path: Path, config: ImportConfig, dictionary: Callable[..., str]
) -> None:
    fields = {**KINDS["dynamicconv"], "share_all_embeddings": False}
    tensors = todays_tensors(model_of(fields), fields)
    torch.save({"args": Namespace(**fields), "model": tensors}, tmp_path / "model.pt")
    (tmp_path / "codes.en").write_text("#version: 0.2\nD e\n")
    changes: dict[str, Any] = {
        "dict_tgt": dictionary("dict.en.txt", "Ba 9\nDe@@ 5\nFi 3\n@-@ 1\n"),
        "bpe_codes_tgt": str(tmp_path / "codes.en"),
        "lowercase": False,
    }
    out = import_run(with_codes(config, tmp_path, **changes))
    run = load_run_config(out)
    assert run.tokenizer.vocabulary is Vocabulary.separate
    tokenizers = trained_run.load_translator(str(out), "auto", run.runtime).tokenizers
    assert tokenizers.src.pieces(tokenizers.src.encode("ba")) == ["ba"]
    assert tokenizers.tgt.decode([6, 7, 6, 5, 4]) == "Fi-Fi DeBa"


def test_raw_text_is_translated_scored_and_tuned_on(
    config: ImportConfig,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As a user does it: import, translate, evaluate, fine-tune, translate with what came of it."""
    out = import_run(with_codes(config, tmp_path))
    (tmp_path / "in.de").write_text("Ba fi.\n\nBa \u2014 ba xyz!\nDefi\n")
    (tmp_path / "in.en").write_text("Fi ba.\n\nFi ba!\nBa.\n")
    text = (f"input={tmp_path / 'in.de'}", "decode=greedy", "decode.max_length=6", *CPU)
    assert main("translate", [f"run_dir={out}", f"output={tmp_path / 'out.en'}", *text]) == 0
    lines = (tmp_path / "out.en").read_text().split("\n")
    assert len(lines) == 5
    assert not any("@@" in line or " ." in line for line in lines)
    capfd.readouterr()
    scored = [f"src={tmp_path / 'in.de'}", f"ref={tmp_path / 'in.en'}", "metrics=bleu", *CPU]
    assert main("eval", [f"run_dir={out}", *scored]) == 0
    assert capfd.readouterr().out.startswith("BLEU = ")
    corpus = [
        *("data=text", "data.src_lang=de", "data.tgt_lang=en", f"data.cache_dir={tmp_path}/cache"),
        *(f"data.{kind}.src={tmp_path / 'in.de'}" for kind in ("train.main", "valid")),
        *(f"data.{kind}.tgt={tmp_path / 'in.en'}" for kind in ("train.main", "valid")),
    ]
    tuning = [
        *(f"run_dir={tmp_path / 'tuned'}", f"start_from={out}", "model.dropout=0.2", *corpus),
        *("train.max_steps=2", "train.validate_every_steps=2", "decode=greedy", *CPU),
    ]
    before = files(out)
    with caplog.at_level(logging.INFO, "lightconv_mt"):
        assert main("train", tuning) == 0
    assert f"starting from {out}/average" in caplog.text
    assert files(out) == before
    tuned = load_run_config(tmp_path / "tuned")
    assert (tuned.model.dropout, tuned.model.mixer.name) == (0.2, "lightconv")
    shutil.rmtree(out)  # the new run stands on its own
    assert main("train", tuning) == 0
    assert main("translate", [f"run_dir={tmp_path / 'tuned'}", *text]) == 0


def test_an_imported_folder_is_not_trained_in(
    config: ImportConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = import_run(config)
    before = files(out / "average")
    assert main("train", [f"run_dir={out}", *CPU]) == 2
    message = f"error: {out} holds a model but no state of a training run to go on from; give "
    assert capfd.readouterr().err == f"{message}start_from={out} and another run_dir\n"
    assert files(out / "average") == before


def test_a_language_must_be_known(config: ImportConfig, state: dict[str, Any]) -> None:
    state["args"].data = "\ud800"
    for unusable in (None, "", "\ud800", "../de", 3):
        state["args"].source_lang = unusable
        torch.save(state, config.checkpoint)
        with pytest.raises(ConfigError, match="does not name its languages; give src_lang"):
            import_run(config)
    import_run(ImportConfig(**{**vars(config), "src_lang": "de"}))


def actions_of(config: ImportConfig, monkeypatch: pytest.MonkeyPatch, out: Path) -> int:
    """How many changes to the disk are announced on the way."""
    actions: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(whole_files, "announce", lambda action, path: actions.append(action))
        import_run(ImportConfig(**{**vars(config), "out": str(out)}))
    return len(actions)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failing_at_any_action_leaves_nothing(
    config: ImportConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    count = actions_of(config, monkeypatch, tmp_path / "whole")
    before = files(tmp_path)
    assert count > 8
    for fatal in range(count):
        left = iter(range(count))

        def fail(action: str, path: Path, left=left, fatal=fatal) -> None:
            if next(left) == fatal:
                raise error

        with monkeypatch.context() as patch:
            patch.setattr(whole_files, "announce", fail)
            with pytest.raises((CheckpointError, KeyboardInterrupt)) as caught:
                import_run(config)
        if isinstance(error, OSError):
            assert "No space left on device" in str(caught.value)
        assert files(tmp_path) == before
        assert not list(Path(config.out).parent.iterdir())


def test_death_at_any_action_leaves_no_run_folder_and_no_hindrance(
    config: ImportConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = actions_of(config, monkeypatch, tmp_path / "whole")
    out = Path(config.out)
    for fatal in range(count):
        child = start(partial(die_at_action, fatal), partial(import_run, config))
        assert exit_code(child) == KILLED
        assert not out.exists()
    import_run(config)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert files(out / "average").keys() == {
        str(out / "average" / name) for name in ("model.safetensors", "state.json", "manifest.json")
    }


def test_an_empty_folder_is_taken_and_any_other_is_not(config: ImportConfig) -> None:
    out = Path(config.out)
    out.mkdir(parents=True)
    import_run(config)
    with pytest.raises(CheckpointError, match="is there already; choose another folder"):
        import_run(config)
    shutil.rmtree(out)
    out.symlink_to(out.with_name("nowhere"))
    with pytest.raises(CheckpointError, match="is there already; choose another folder"):
        import_run(config)


@pytest.mark.parametrize("code", ["", "d e", "../de"])
def test_a_language_is_a_code(config: ImportConfig, code: str) -> None:
    with pytest.raises(ConfigError, match="tgt_lang is .*; give a code such as de"):
        ImportConfig(**{**vars(config), "tgt_lang": code})
