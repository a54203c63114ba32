"""A model as `torch.export` programs and ONNX files: an encoder, and one step of the decoder.

Both hold plain operators only, so that they run where this library is not. The step is given its
state and returns the next one: whoever owns the loop owns the search.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from lightconv_mt.data.tokenizer_pair import TokenizerPair
from lightconv_mt.errors import ConfigError
from lightconv_mt.interop.programs import (
    Program,
    encoder_program,
    nest_arguments,
    step_program,
)
from lightconv_mt.model.transformer import Seq2SeqTransformer
from lightconv_mt.ops import Backend
from lightconv_mt.train.storage import write_folder

logger = logging.getLogger(__name__)

FORMAT = 1
INTERFACE = "interface.json"
# Of what the programs are traced with: unlike each other, so that none is taken for another.
TRACED = {"rows": 3, "source": 7, "past": 5}
LEAST = {"rows": 1, "source": 1, "past": 0}
# Other ones, to compare with the model, and how far apart the results may be.
CHECKED = {"rows": 2, "source": 11, "past": 3}
TOLERANCE = 1e-3


def export_model(
    model: Seq2SeqTransformer,
    tokenizers: TokenizerPair,
    folder: Path,
    *,
    max_source_tokens: int,
    onnx: bool = True,
) -> None:
    """Write `encoder` and `step` as .pt2 and .onnx files, with tokenizers and `interface.json`.

    Every program is compared with the model before the folder appears.

    Args:
        model: in float32 on the CPU, with the reference backend.
        tokenizers: those it was trained with.
        folder: to be created.
        max_source_tokens: longest source it is to be given, EOS included.
        onnx: whether to write ONNX files too.

    Raises:
        ConfigError: when the folder exists, a package is missing, or the model holds something that
            cannot be traced with its lengths left open.
        CheckpointError: when the folder cannot be written.
    """
    assert model.backend is Backend.reference, model.backend
    if folder.exists():
        raise ConfigError(f"{folder} exists; remove it, or export into another folder")
    if onnx:
        _require("onnx", "onnxscript", "onnxruntime")
    model = model.eval()
    programs = {"encoder": encoder_program(model), "step": step_program(model)}
    with TemporaryDirectory() as aside:
        scratch = Path(aside)
        tokenizers.save(scratch)
        for name, program in programs.items():
            exported = trace(program)
            _write_program(exported, program, scratch / f"{name}.pt2")
            if onnx:
                _write_onnx(exported, program, scratch / f"{name}.onnx")
        text = json.dumps(interface(programs, tokenizers, max_source_tokens), indent=1)
        (scratch / INTERFACE).write_text(f"{text}\n", encoding="utf-8")
        written = sorted(scratch.iterdir())
        size = sum(path.stat().st_size for path in written)
        write_folder(folder, {path.name: partial(copyfile, path) for path in written}, size=size)
    logger.info("%s: %s", folder, ", ".join(path.name for path in written))


def trace(program: Program) -> ExportedProgram:
    """The program with all named sizes left open, of plain operators only.

    Raises:
        ConfigError: when a part of the model needs to know a size, or this torch believes so.
    """
    given = example_inputs(program, **TRACED)
    open_sizes = {name: Dim(name, min=LEAST[name]) for name in TRACED}
    dynamic = [
        {axis: open_sizes[size] for axis, size in enumerate(port.shape) if isinstance(size, str)}
        for port in program.inputs
    ]
    try:
        with torch.no_grad():
            exported = torch.export.export(
                program.module,
                nest_arguments(program, given),
                dynamic_shapes=nest_arguments(program, dynamic),
            )
    except (torch._dynamo.exc.UserError, RuntimeError) as error:
        # The first line advertises a debugger; a list of what was violated may follow it.
        lines = str(error).strip().splitlines()
        reason = next((line[4:] for line in lines if line.startswith("  - ")), lines[0])
        raise ConfigError(
            f"this model cannot be exported: for torch {torch.__version__} a part of it treats "
            f"some lengths unlike others, as windows of attention in the encoder do ({reason})"
        ) from error
    foreign = foreign_operators(exported)
    assert not foreign, foreign
    return exported


def foreign_operators(exported: ExportedProgram) -> set[str]:
    """Names of the operators that torch itself does not bring."""
    targets = {node.target for node in exported.graph.nodes if node.op == "call_function"}
    return {
        str(target)
        for target in targets
        if isinstance(target, torch._ops.OperatorBase)
        and getattr(target, "namespace", "") not in ("aten", "prim")
    }


def example_inputs(program: Program, *, rows: int, source: int, past: int) -> list[Tensor]:
    """Inputs of the given sizes, drawn with a seed."""
    generator = torch.Generator().manual_seed(1)
    named = {"rows": rows, "source": source, "past": past}
    found = []
    for port in program.inputs:
        sizes = [named[size] if isinstance(size, str) else size for size in port.shape]
        if port.dtype == "bool":
            # The last row is shorter than the others.
            tensor = torch.ones(sizes, dtype=torch.bool)
            tensor[-1, -1] = False
        elif port.dtype == "int64":
            tensor = torch.randint(3, sizes, generator=generator)
        else:
            tensor = torch.randn(sizes, generator=generator)
        found.append(tensor)
    return found


def interface(
    programs: dict[str, Program], tokenizers: TokenizerPair, max_source_tokens: int
) -> dict[str, Any]:
    """What a decoder in another language needs to know, as JSON values."""
    step = programs["step"]
    states = [port for port in step.inputs if port.name.startswith(("position", "state_"))]
    return {
        "format": FORMAT,
        "sizes": {
            "rows": "sentences of the encoder; hypotheses of the step, each with a row of its own "
            "in every input",
            "source": "source tokens with EOS, padded on the right where src_mask is false",
            "past": "0 before the first step, one more after each",
        },
        "src_ids": asdict(tokenizers.src.ids),
        "tgt_ids": asdict(tokenizers.tgt.ids),
        "src_vocab_size": tokenizers.src.vocab_size,
        "tgt_vocab_size": tokenizers.tgt.vocab_size,
        "max_source_tokens": max_source_tokens,
        **{
            name: {
                "inputs": [asdict(port) for port in program.inputs],
                "outputs": [asdict(port) for port in program.outputs],
            }
            for name, program in programs.items()
        },
        # Zeros of size 0 along past: the first tokens are BOS.
        "state": [
            {"input": port.name, "output": f"next_{port.name}", "first": "zeros"} for port in states
        ],
    }


def _write_program(exported: ExportedProgram, program: Program, path: Path) -> None:
    torch.export.save(exported, path)
    read = torch.export.load(path).module()
    _compare(program, lambda given: read(*nest_arguments(program, given)), path.name)


def _write_onnx(exported: ExportedProgram, program: Program, path: Path) -> None:
    written = torch.onnx.export(
        exported,
        dynamo=True,
        verbose=False,
        input_names=[port.name for port in program.inputs],
        output_names=[port.name for port in program.outputs],
    )
    assert written is not None
    graph = written.model.graph
    domains = {node.domain for node in graph} - {"", "ai.onnx"}
    assert not domains and not written.model.functions, domains
    for port, value in zip(
        [*program.inputs, *program.outputs], [*graph.inputs, *graph.outputs], strict=True
    ):
        value.shape = import_module("onnx_ir").Shape(port.shape)
    written.save(path)
    session = import_module("onnxruntime").InferenceSession(path)
    names = [port.name for port in program.inputs]

    def run(given: list[Tensor]) -> list[Tensor]:
        feed = {name: tensor.numpy() for name, tensor in zip(names, given, strict=True)}
        return [torch.from_numpy(each) for each in session.run(None, feed)]

    _compare(program, run, path.name)


def _compare(program: Program, run: Callable[[list[Tensor]], list[Tensor]], name: str) -> None:
    """Run on other sizes than those traced, and compare with the model.

    Raises:
        ConfigError: when the results differ by more than rounding.
    """
    given = example_inputs(program, **CHECKED)
    with torch.no_grad():
        expected = program.module(*nest_arguments(program, given))
        found = run(given)
    apart = 0.0
    for ours, theirs in zip(expected, found, strict=True):
        assert ours.shape == theirs.shape, (name, ours.shape, theirs.shape)
        difference = (ours.double() - theirs.double()).abs().flatten().tolist()
        apart = max([apart, *difference])
    if not apart <= TOLERANCE:
        raise ConfigError(
            f"{name} differs from the model by {apart:.1e}; this version of its packages cannot "
            f"export the model, install those of constraints.txt"
        )
    logger.info("%s: apart from the model by %.0e at most", name, apart)


def _require(*packages: str) -> None:
    for package in packages:
        try:
            import_module(package)
        except ImportError as error:
            raise ConfigError(
                f"ONNX files need {package}; pip install 'lightconv-mt[export]', "
                f"or export without them"
            ) from error
