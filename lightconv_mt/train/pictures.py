"""Pictures of what a model has learned: convolution kernels and source attention."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lightconv_mt.data.batching import Batch
from lightconv_mt.mixers.depthwise import DepthwiseMixer
from lightconv_mt.mixers.dynamicconv import DynamicConvMixer
from lightconv_mt.model.layers import SourceAttention
from lightconv_mt.model.transformer import Seq2SeqTransformer
from lightconv_mt.ops.reference import normalized_taps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LABELS = 64  # of rows; of more, some are left out
# Asked in turn, where they are installed, for characters that matplotlib's own font lacks.
FONTS_OF_OTHER_SCRIPTS = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "Hiragino Sans", "PingFang SC"),
    *("Yu Gothic", "Microsoft YaHei", "Malgun Gothic", "IPAexGothic", "WenQuanYi Zen Hei"),
    *("Noto Sans Devanagari", "Noto Sans Thai", "Arial Unicode MS", "Unifont"),
)


class Panel(NamedTuple):
    """One heat map.

    Attributes:
        name: of the module it shows, such as `encoder.layers.0.mixer`.
        values: (rows, columns).
        rows: their labels.
    """

    name: str
    values: Tensor
    rows: Sequence[str]


def draw_model(
    model: Seq2SeqTransformer, batch: Batch, *, src_pieces: Sequence[str], tgt_pieces: Sequence[str]
) -> "dict[str, Figure]":
    """Draw kernels and source attention for one sentence pair.

    Args:
        model: in evaluation mode.
        batch: of one sentence pair.
        src_pieces: S labels.
        tgt_pieces: T labels, of the tokens read (BOS first).

    Returns:
        Figures by name: `kernels/<side>` for LightConv (heads by taps, a panel a layer),
        `kernels/<side>` for DynamicConv (positions by taps of the first head, edges not
        renormalised) and `source_attention` (mean over heads, a panel a layer).
    """
    predicted, attended = _run(model, batch)
    figures = {}
    for side, pieces in (("encoder", src_pieces), ("decoder", tgt_pieces)):
        panels: list[Panel] = []
        for name, mixer in model.get_submodule(side).named_modules(prefix=side):
            if isinstance(mixer, DepthwiseMixer):
                taps = normalized_taps(mixer.kernel.detach(), normalize=mixer.normalize)
                panels.append(Panel(name, taps, [f"head {head}" for head in range(len(taps))]))
            elif isinstance(mixer, DynamicConvMixer):
                taps = normalized_taps(predicted[name], normalize=mixer.config.normalize)
                panels.append(Panel(name, taps[0, :, 0], pieces))
        if panels:
            figures[f"kernels/{side}"] = _draw(panels, xlabel="tap", columns=None)
    panels = [Panel(name, weights[0].mean(dim=0), tgt_pieces) for name, weights in attended.items()]
    figures["source_attention"] = _draw(panels, xlabel="source", columns=src_pieces)
    return figures


def _run(model: Seq2SeqTransformer, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """DynamicConv kernels (B, T, H, K) and source attention (B, H, T, S), by module name."""
    predicted: dict[str, Tensor] = {}
    attended: dict[str, Tensor] = {}
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

            def note_attention(
                module: nn.Module, inputs: tuple[Any, ...], name: str = name
            ) -> None:
                assert isinstance(module, SourceAttention)
                x, key, _, src_mask = inputs
                attended[name] = module.weights(x, key, src_mask)

            hooks.append(module.register_forward_pre_hook(note_attention))
    try:
        with torch.inference_mode():
            model(batch.src, batch.src_mask, batch.tgt_in, batch.tgt_mask)
    finally:
        for hook in hooks:
            hook.remove()
    return predicted, attended


def _draw(panels: list[Panel], *, xlabel: str, columns: Sequence[str] | None) -> "Figure":
    """One heat map a layer, side by side; rows are labelled where they change, columns on all."""
    from matplotlib.figure import Figure  # takes a second, which only training needs

    style: dict[str, Any] = {"fontsize": 7, "fontfamily": _fonts()}
    figure = Figure(figsize=(3.2 * len(panels), 4.0), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(panels)))
    labelled: Sequence[str] = ()
    for axis, (name, tensor, rows) in zip(axes, panels, strict=True):
        values = tensor.float().cpu().numpy()
        axis.imshow(values, aspect="auto", cmap="viridis", vmin=min(0.0, values.min()))
        axis.set_title(f"layer {int(name.split('.')[2]) + 1}")
        axis.set_xlabel(xlabel)
        ticks = range(0, len(rows), 1 + len(rows) // MOST_LABELS)
        axis.set_yticks(ticks, [rows[row] if rows != labelled else "" for row in ticks], **style)
        labelled = rows
        if columns is not None:
            axis.set_xticks(range(len(columns)), columns, rotation=90, **style)
    return figure


def _fonts() -> list[str]:
    """Families that labels are set in, the usual one first."""
    from matplotlib import font_manager, rcParams

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [*rcParams["font.family"], *(n for n in FONTS_OF_OTHER_SCRIPTS if n in installed)]
