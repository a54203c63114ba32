"""What is exported of a model, with names and sizes for all that goes in and comes out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightconv_mt.mixers import MixerState
from lightconv_mt.model.decoder import DecoderState
from lightconv_mt.model.transformer import Seq2SeqTransformer

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


def nest_arguments(program: Program, flat: Sequence[Any]) -> tuple[Any, ...]:
    """Arguments of the module's `forward`: the step's are lists from the fourth on."""
    if isinstance(program.module, EncoderProgram):
        return tuple(flat)
    sources = [
        value
        for port, value in zip(program.inputs, flat, strict=True)
        if port.name.startswith("source_")
    ]
    return (*flat[:3], sources, list(flat[3 + len(sources) :]))


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
