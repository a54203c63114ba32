"""Pictures of what a model has learned: convolution kernels and source attention."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightconv_mt.data.batching import Batch
from lightconv_mt.mixers.depthwise import DepthwiseMixer
from lightconv_mt.mixers.dynamicconv import DynamicConvMixer
from lightconv_mt.model.layers import SourceAttention
from lightconv_mt.model.transformer import Seq2SeqTransformer
from lightconv_mt.ops.reference import normalized_taps


def draw_model(
    model: Seq2SeqTransformer, batch: Batch, *, src_pieces: Sequence[str], tgt_pieces: Sequence[str]
) -> dict[str, Figure]:
    """Draw kernels and source attention for one sentence pair.

    Args:
        model: in evaluation mode.
        batch: of one sentence pair.
        src_pieces: S labels.
        tgt_pieces: T labels, of the tokens read (BOS first).

    Returns:
        Figures by name: `kernels/<side>` for LightConv (heads by taps, a panel a layer),
        `kernels/<side>` for DynamicConv (positions by taps of the first head) and
        `source_attention` (mean over heads, a panel a layer).
    """
    predicted, attended = _run(model, batch)
    figures = {}
    for side, pieces in (("encoder", src_pieces), ("decoder", tgt_pieces)):
        panels: list[tuple[Tensor, Sequence[str]]] = []
        for name, mixer in model.get_submodule(side).named_modules(prefix=side):
            if isinstance(mixer, DepthwiseMixer):
                taps = normalized_taps(mixer.kernel.detach(), normalize=mixer.normalize)
                panels.append((taps, [f"head {head}" for head in range(len(taps))]))
            elif isinstance(mixer, DynamicConvMixer):
                taps = normalized_taps(predicted[name], normalize=mixer.config.normalize)
                panels.append((taps[0, :, 0], pieces))
        if panels:
            figures[f"kernels/{side}"] = _draw(panels, xlabel="tap", columns=None)
    if attended:
        panels = [(weights[0].mean(dim=0), tgt_pieces) for weights in attended]
        figures["source_attention"] = _draw(panels, xlabel="source", columns=src_pieces)
    return figures


def _run(model: Seq2SeqTransformer, batch: Batch) -> tuple[dict[str, Tensor], list[Tensor]]:
    """DynamicConv kernels (B, T, H, K) by mixer name, source attention (B, H, T, S) by layer."""
    predicted: dict[str, Tensor] = {}
    attended: list[Tensor] = []

    def note_attention(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(module, SourceAttention)
        x, key, _, src_mask = inputs
        attended.append(module.weights(x, key, src_mask))

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, DynamicConvMixer):
            shape = (module.num_heads, module.kernel_size)

            def note_kernels(
                _: nn.Module, __: Any, out: Tensor, name: str = name, shape: Any = shape
            ) -> None:
                predicted[name] = out.unflatten(-1, shape)

            hooks.append(module.kernel_predictor.register_forward_hook(note_kernels))
        elif isinstance(module, SourceAttention):
            hooks.append(module.register_forward_pre_hook(note_attention))
    try:
        with torch.inference_mode():
            model(batch.src, batch.src_mask, batch.tgt_in, batch.tgt_mask)
    finally:
        for hook in hooks:
            hook.remove()
    return predicted, attended


def _draw(
    panels: list[tuple[Tensor, Sequence[str]]], *, xlabel: str, columns: Sequence[str] | None
) -> Figure:
    """One heat map a layer, side by side; rows are labelled on the first, columns on all."""
    figure = Figure(figsize=(3.2 * len(panels), 4.0), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(panels)))
    for layer, (axis, (values, rows)) in enumerate(zip(axes, panels, strict=True)):
        axis.imshow(values.float().cpu().numpy(), aspect="auto", cmap="viridis", vmin=0.0)
        axis.set_title(f"layer {layer + 1}")
        axis.set_xlabel(xlabel)
        axis.set_yticks(range(len(rows)), rows if layer == 0 else [""] * len(rows), fontsize=7)
        if columns is not None:
            axis.set_xticks(range(len(columns)), columns, rotation=90, fontsize=7)
    return figure
