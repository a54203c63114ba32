"""Exported programs, run by onnxruntime and torch alone, do what the library does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from toy_run import write_toy_run

from lightconv_mt.config import Device, RuntimeConfig
from lightconv_mt.data.tokenizer import Tokenizer
from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.decode.translator import Translator
from lightconv_mt.errors import ConfigError
from lightconv_mt.interop import export
from lightconv_mt.interop.programs import encoder_program
from lightconv_mt.mixers import MIXERS
from lightconv_mt.ops import Backend
from lightconv_mt.trained_run import load_translator

Array = NDArray[Any]
LINES = ["ba de fi go hu ka le", "zu", "vo ti se ra mi mi mi mi no pu", "go go"]
LONGEST = 12
WIDTHS = {"encoder_kernel_sizes": [3], "decoder_kernel_sizes": [5]}
# A stack of every mixer, so that a step of each is exported once.
EVERY = {
    "decoder_layers": len(MIXERS),
    "decoder_mixers": list(MIXERS),
    "mixers": {
        name: config(**(WIDTHS if hasattr(config, "kernel_sizes") else {}))
        for name, config in MIXERS.items()
        if name != "dynamicconv"
    },
}
MODELS: dict[str, dict[str, Any]] = {
    "lightconv": {"mixer": "lightconv", "decoder_layers": 2},
    "dynamicconv and the others": {"mixer": "dynamicconv", **EVERY},
}


def load(run_dir: Path, kernels: Backend) -> Translator:
    return load_translator(
        str(run_dir), "auto", RuntimeConfig(device=Device.cpu, kernels=kernels, threads=1)
    )


def export_to(folder: Path, run_dir: Path, *, onnx: bool) -> None:
    found = load(run_dir, Backend.reference)
    limit = found.max_source_tokens
    export.export_model(found.model, found.tokenizers, folder, max_source_tokens=limit, onnx=onnx)


class TorchSession:
    """A .pt2 file with the face of an onnxruntime session."""

    def __init__(self, path: Path, inputs: list[dict[str, Any]]) -> None:
        """Read it."""
        self.module = torch.export.load(path).module()
        self.names = [port["name"] for port in inputs]

    def run(self, outputs: None, feed: dict[str, Array]) -> list[Array]:
        given = [torch.from_numpy(feed[name]) for name in self.names]
        if self.names[0] == "tokens":
            sources = [n for n, name in enumerate(self.names) if name.startswith("source_")]
            given = [*given[:3], [given[n] for n in sources], given[3 + len(sources) :]]
        with torch.no_grad():
            return [tensor.numpy() for tensor in self.module(*given)]


def greedy(
    folder: Path, lines: list[str], kind: str
) -> tuple[list[list[int]], list[list[Array]], Tokenizer]:
    """Tokens and logits of each line, by files of the folder alone."""
    described = json.loads((folder / "interface.json").read_text())
    sessions: dict[str, Any] = {}
    for name in ("encoder", "step"):
        if kind == "onnx":
            session = pytest.importorskip("onnxruntime").InferenceSession(folder / f"{name}.onnx")
            for side, values in (
                ("inputs", session.get_inputs()),
                ("outputs", session.get_outputs()),
            ):
                names = [port["name"] for port in described[name][side]]
                assert names == [value.name for value in values]
                assert [port["shape"] for port in described[name][side]] == [
                    value.shape for value in values
                ]
            sessions[name] = session
        else:
            sessions[name] = TorchSession(folder / f"{name}.pt2", described[name]["inputs"])
    tokenizer = Tokenizer.load(folder / "tokenizer.model")
    src_ids, ids = described["src_ids"], described["tgt_ids"]
    sources = [[*each, src_ids["eos"]] for each in tokenizer.encode_batch(lines)]
    width = max(map(len, sources))
    src = np.array([each + [src_ids["pad"]] * (width - len(each)) for each in sources])
    src_mask = np.array([[n < len(each) for n in range(width)] for each in sources])
    kept = sessions["encoder"].run(None, {"src": src, "src_mask": src_mask})
    feed = dict(zip((port["name"] for port in described["encoder"]["outputs"]), kept, strict=True))
    feed["src_mask"] = src_mask
    sizes = {"rows": len(lines), "source": width, "past": 0}
    ports = {port["name"]: port for port in described["step"]["inputs"]}
    for state in described["state"]:
        port = ports[state["input"]]
        shape = [sizes.get(size, size) for size in port["shape"]]
        feed[port["name"]] = np.zeros(shape, port["dtype"])
    feed["tokens"] = np.full(len(lines), ids["bos"])
    outputs = [port["name"] for port in described["step"]["outputs"]]
    tokens: list[list[int]] = [[] for _ in lines]
    logits: list[list[Array]] = [[] for _ in lines]
    for _ in range(LONGEST):
        found = dict(zip(outputs, sessions["step"].run(None, feed), strict=True))
        feed.update({state["input"]: found[state["output"]] for state in described["state"]})
        chosen = found["logits"].copy()
        chosen[:, ids["pad"]] = -np.inf
        if not tokens[0]:
            chosen[:, ids["eos"]] = -np.inf  # decode.min_length=1
        feed["tokens"] = chosen.argmax(1)
        for row, one in enumerate(tokens):
            if ids["eos"] not in one:
                one.append(int(feed["tokens"][row]))
                logits[row].append(found["logits"][row])
    return tokens, logits, tokenizer


@pytest.mark.parametrize("name", MODELS)
def test_greedy_decoding_by_exported_programs_is_that_of_the_library(
    name: str, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    if torch.__version__ < (2, 11):
        pytest.skip("the extra export asks for torch 2.11")
    pytest.importorskip("onnxscript", reason="the extra export is not installed")
    run_dir, folder = write_toy_run(tmp_path / "run", **MODELS[name]), tmp_path / "out"
    export_to(folder, run_dir, onnx=True)
    known = {".onnx", ".pt2", ".json", ".model", ".sha256"}
    assert not {path.suffix for path in folder.iterdir()} - known
    library = load(run_dir, Backend.auto)
    search = DecodeConfig(beam_size=1, max_length=LONGEST)
    expected = [each.text for each in library.translate(LINES, search)]
    assert len(set(expected)) == len(LINES)
    for kind in ("onnx", "torch"):
        tokens, logits, tokenizer = greedy(folder, LINES, kind)
        texts = [tokenizer.decode(each) for each in tokens]
        # The library puts no line break into a line.
        assert [text.replace("\r", " ").replace("\n", " ") for text in texts] == expected
        for line, found, steps in zip(LINES, tokens, logits, strict=True):
            src = torch.tensor([[*tokenizer.encode(line), tokenizer.ids.eos]])
            tgt_in = torch.tensor([[tokenizer.ids.bos, *found[:-1]]])
            masks = torch.ones_like(src, dtype=torch.bool), torch.ones_like(tgt_in).bool()
            with torch.no_grad():
                model = library.model
                whole = model.project(model(src, masks[0], tgt_in, masks[1]))[0]
            torch.testing.assert_close(
                torch.from_numpy(np.stack(steps)), whole, atol=1e-4, rtol=1e-4
            )


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_is_traced_in_the_encoder_too(mixer: str, tmp_path: Path) -> None:
    model = load(write_toy_run(tmp_path / "run", mixer=mixer), Backend.reference).model
    assert export.foreign_operators(export.trace(encoder_program(model))) == set()


def test_operators_of_this_library_are_found(tmp_path: Path) -> None:
    """Or the test above could not fail."""
    model = load(write_toy_run(tmp_path / "run"), Backend.auto).model
    if model.backend is Backend.torch:
        pytest.skip("there are no kernels here")
    program = encoder_program(model)
    traced = torch.export.export(program.module, tuple(export.example_inputs(program, **SIZES)))
    assert any("lightconv" in name for name in export.foreign_operators(traced))


SIZES = {"rows": 2, "source": 4, "past": 0}


def test_what_cannot_be_exported_takes_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = MIXERS["attention"](encoder_windows=[3])
    run_dir = write_toy_run(
        tmp_path / "run", mixers={"attention": windows}, encoder_mixers=["attention"]
    )
    with pytest.raises(ConfigError, match=r"cannot be exported: for torch [0-9]\S+ a part of it"):
        export_to(tmp_path / "out", run_dir, onnx=False)
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="there exists; remove it"):
        export_to(tmp_path / "there", run_dir, onnx=False)
    monkeypatch.setattr(export, "import_module", failing)
    with pytest.raises(ConfigError, match="need onnx; pip install"):
        export_to(tmp_path / "out", run_dir, onnx=True)
    assert not (tmp_path / "out").exists()


def failing(name: str) -> None:
    raise ImportError(name)


def test_results_that_differ_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = write_toy_run(tmp_path / "run")
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(ConfigError, match="encoder.pt2 differs from the model by"):
        export_to(tmp_path / "out", run_dir, onnx=False)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
