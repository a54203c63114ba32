"""A model as `torch.export` programs and ONNX files: an encoder, and one step of the decoder.

Both hold plain operators only, so that they run where this library is not. The step is given its
state and returns the next one: whoever owns the loop owns the search.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lightconv_mt.data.tokenizer import TokenizerPair
from lightconv_mt.errors import ConfigError
from lightconv_mt.mixers import MixerState
from lightconv_mt.model.decoder import DecoderState
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

Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Port:
    """One input or output of a program.

    Attributes:
        name: its name in the ONNX file, and its place in the order of all of them.
        dtype: int64, bool or float32.
        shape: sizes, those left open by name.
    """

    name: str
    dtype: str
    shape: Shape


@dataclass(frozen=True)
class Program:
    """What is exported: a module, what it is given and what it returns."""

    module: nn.Module
    inputs: list[Port]
    outputs: list[Port]


class EncoderProgram(nn.Module):
    """Source to what every step of the decoder reads of it."""

    def __init__(self, model: Seq2SeqTransformer) -> None:
        """Wrap the model."""
        super().__init__()
        self.model = model

    def forward(self, src: Tensor, src_mask: Tensor) -> list[Tensor]:
        """Source src (B, S) int64, src_mask (B, S) bool -> key and value of each decoder layer."""
        state = self.model.start(self.model.encode(src, src_mask), src_mask, 1)
        return [tensor for source in state.sources for tensor in source]


class StepProgram(nn.Module):
    """One token of every row, with the decoder's state as lists of tensors."""

    def __init__(self, model: Seq2SeqTransformer) -> None:
        """Wrap the model."""
        super().__init__()
        self.model = model
        self.sizes = [len(state) for state in _initial_states(model, 1)]

    def forward(
        self,
        tokens: Tensor,
        position: Tensor,
        src_mask: Tensor,
        sources: list[Tensor],
        states: list[Tensor],
    ) -> list[Tensor]:
        """Read one token.

        Args:
            tokens: (N,) int64, BOS first.
            position: (N,) int64, how many tokens each row has read.
            src_mask: (N, S) bool.
            sources: what the encoder returned, a row of it for each row here.
            states: tensors of all layers in order.

        Returns:
            Logits (N, V), the next position, and the next states.
        """
        rest = iter(states)
        # A ring is overwritten, and what a program is given is not its own.
        mixers = [tuple(next(rest).clone() for _ in range(size)) for size in self.sizes]
        pairs = list(zip(sources[::2], sources[1::2], strict=True))
        state = DecoderState(
            position=position[:, None],  # type: ignore[arg-type]  # a position for each row
            mixers=mixers,
            sources=pairs,
            src_mask=src_mask,
        )
        logits, state = self.model.decode_step(tokens[:, None], state)
        return [logits[:, 0], position + 1, *(tensor for each in state.mixers for tensor in each)]


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


def encoder_program(model: Seq2SeqTransformer) -> Program:
    """The encoder, with the source attention's projections of what it made."""
    module = EncoderProgram(model)
    inputs = [
        Port("src", "int64", ("rows", "source")),
        Port("src_mask", "bool", ("rows", "source")),
    ]
    return Program(module, inputs, _source_ports(model))


def step_program(model: Seq2SeqTransformer) -> Program:
    """One step of the decoder."""
    vocab_size = model.output_weight.shape[0]
    states = [
        Port(f"state_{layer}_{index}", str(tensor.dtype).removeprefix("torch."), _sizes(tensor))
        for layer, state in enumerate(_initial_states(model, 1))
        for index, tensor in enumerate(state)
    ]
    # Where a state grows, its next one is longer.
    grown = [
        Port(f"next_{port.name}", port.dtype, tuple(_grown(size) for size in port.shape))
        for port in states
    ]
    return Program(
        StepProgram(model),
        [
            Port("tokens", "int64", ("rows",)),
            Port("position", "int64", ("rows",)),
            Port("src_mask", "bool", ("rows", "source")),
            *_source_ports(model),
            *states,
        ],
        [
            Port("logits", "float32", ("rows", vocab_size)),
            Port("next_position", "int64", ("rows",)),
            *grown,
        ],
    )


def trace(program: Program) -> ExportedProgram:
    """The program with all named sizes left open, of plain operators only.

    Raises:
        ConfigError: when a part of the model needs to know a size.
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
                program.module, _nested(program, given), dynamic_shapes=_nested(program, dynamic)
            )
    except (torch._dynamo.exc.UserError, RuntimeError) as error:
        # The first line advertises a debugger; a list of what was violated may follow it.
        lines = str(error).strip().splitlines()
        reason = next((line[4:] for line in lines if line.startswith("  - ")), lines[0])
        raise ConfigError(
            f"this model cannot be exported: a part of it treats some lengths unlike others, as "
            f"windows of attention in the encoder do ({reason})"
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


def _source_ports(model: Seq2SeqTransformer) -> list[Port]:
    memory = torch.zeros(1, 1, model.config.dim)
    return [
        Port(f"source_{kind}_{layer}", "float32", ("rows", tensor.shape[1], "source", *sizes))
        for layer, source in enumerate(
            model.start(memory, torch.ones(1, 1, dtype=torch.bool), 1).sources
        )
        for kind, tensor in zip(("key", "value"), source, strict=True)
        for sizes in (tensor.shape[3:],)
    ]


def _initial_states(model: Seq2SeqTransformer, rows: int) -> list[MixerState]:
    return model.start(
        torch.zeros(rows, 1, model.config.dim), torch.ones(rows, 1, dtype=torch.bool), 1
    ).mixers


def _sizes(state: Tensor) -> Shape:
    """Rows first; attention's third axis is empty before the first token, and grows."""
    if state.dim() == 4 and state.shape[2] == 0:
        return ("rows", state.shape[1], "past", state.shape[3])
    return ("rows", *state.shape[1:])


def _grown(size: int | str) -> int | str:
    return "past + 1" if size == "past" else size


def _nested(program: Program, flat: Sequence[Any]) -> tuple[Any, ...]:
    """Arguments of the module's `forward`: the step's are lists from the fourth on."""
    if isinstance(program.module, EncoderProgram):
        return tuple(flat)
    sources = [
        value
        for port, value in zip(program.inputs, flat, strict=True)
        if port.name.startswith("source_")
    ]
    return (*flat[:3], sources, list(flat[3 + len(sources) :]))


def _write_program(exported: ExportedProgram, program: Program, path: Path) -> None:
    torch.export.save(exported, path)
    read = torch.export.load(path).module()
    _compare(program, lambda given: read(*_nested(program, given)), path.name)


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
        expected = program.module(*_nested(program, given))
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
