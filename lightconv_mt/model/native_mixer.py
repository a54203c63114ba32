"""Which mixers the C++ encoder and decoder have, and what of them they read."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightconv_mt.mixers import TokenMixer
from lightconv_mt.mixers.attention import AttentionMixer
from lightconv_mt.mixers.conv_block import ConvBlock
from lightconv_mt.mixers.depthwise import DepthwiseMixer
from lightconv_mt.mixers.dynamicconv import DynamicConvMixer
from lightconv_mt.ops.decoder_step import Program

FIXED_KERNELS, PREDICTED_KERNELS, ATTENTION = range(3)  # `Mixer` of csrc/rows.h


@dataclass(frozen=True)
class MixerParts:
    """Numbers and weights of a mixer as `Layer` of csrc/encoder.cpp and csrc/decoder.cpp has them.

    Attributes:
        kind: FIXED_KERNELS, PREDICTED_KERNELS or ATTENTION.
        width: of kernels, or of attention's window, 0 for none.
        heads: H.
        channels: C of what is convolved or attended to.
        glu: whether the input is gated.
        normalize: whether predicted kernels have a softmax.
        taps: (H, K) of fixed kernels after their softmax.
        weight: (outputs, inputs) of the input projection, of attention for queries, keys, values.
        bias: (outputs,).
        predictor: (H K, C) of predicted kernels.
        output: the output projection.
    """

    kind: int
    width: int
    heads: int
    channels: int
    glu: bool
    normalize: bool
    taps: Tensor | None
    weight: Tensor
    bias: Tensor
    predictor: Tensor | None
    output: nn.Linear

    @property
    def predicted_taps(self) -> int:
        """Taps that are predicted for a position."""
        return 0 if self.predictor is None else len(self.predictor)

    def add_inputs(self, program: Program, dtype: torch.dtype) -> None:
        """Append a `Layer` up to its output projection."""
        numbers = (self.width, self.heads, self.channels, self.glu, self.normalize)
        program.add_numbers(self.kind, *numbers)
        program.add_tensor(self.taps)
        program.add_matrix(self.weight, self.bias, dtype)
        program.add_matrix(self.predictor, None, dtype)


def unsupported_mixer(mixer: TokenMixer) -> str | None:
    """Why C++ cannot run a mixer, or None where it can."""
    if isinstance(mixer, DynamicConvMixer):
        if mixer.config.renormalize_edges or not mixer.reads_convolved:
            return "it has no kernels renormalised at the edges or predicted from the input"
    elif not isinstance(mixer, DepthwiseMixer | AttentionMixer):
        return f"it has no {type(mixer).__name__}"
    return None


def unsupported_layers(layers: Iterable[nn.Module]) -> str | None:
    """Why C++ cannot run the mixer of some layer, or None where it can run them all."""
    for layer in layers:
        assert isinstance(layer.mixer, TokenMixer)
        reason = unsupported_mixer(layer.mixer)
        if reason is not None:
            return reason
    return None


def parts_of(mixer: TokenMixer) -> MixerParts:
    """Read a mixer for which `unsupported_mixer` is None."""
    taps = predictor = None
    if isinstance(mixer, AttentionMixer):
        kind, width, glu, normalize = ATTENTION, mixer.window or 0, False, True
        projections = (mixer.query, mixer.key, mixer.value)
        weight = torch.cat([each.weight for each in projections])
        bias = torch.cat([each.bias for each in projections])
        channels = mixer.query.out_features
    else:
        assert isinstance(mixer, DepthwiseMixer | DynamicConvMixer)
        width, glu, channels = mixer.kernel_size, mixer.glu, mixer.conv_dim
        weight, bias = mixer.input_projection.weight, mixer.input_projection.bias
        if isinstance(mixer, DynamicConvMixer):
            kind, normalize = PREDICTED_KERNELS, mixer.config.normalize
            predictor = mixer.kernel_predictor.weight
        else:
            kind, normalize = FIXED_KERNELS, mixer.normalize
            kernel = mixer.kernel.float()
            taps = kernel.softmax(-1) if normalize else kernel
    return MixerParts(
        kind=kind,
        width=width,
        heads=mixer.num_heads,
        channels=channels,
        glu=glu,
        normalize=normalize,
        taps=taps,
        weight=weight,
        bias=bias,
        predictor=predictor,
        output=mixer.output_projection,
    )


def remembers_all(mixer: TokenMixer) -> bool:
    """Whether decoding reads every earlier position, not only those that a kernel reaches."""
    return not isinstance(mixer, ConvBlock)


def add_norm(program: Program, norm: nn.Module | None) -> None:
    """Append a `Norm`; null where it is no layer norm."""
    found = norm if isinstance(norm, nn.LayerNorm) else None
    program.add_tensor(None if found is None else found.weight.float())
    program.add_tensor(None if found is None else found.bias.float())
