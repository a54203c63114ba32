"""Count what one layer of each mixer costs and print it as a Markdown table, in millions.

Parameters, then multiply-adds a token in sentences of the given lengths; two numbers are encoder
and decoder. Kernels and windows are 31 wide, that of the full convolution 3, and there is no GLU.
"""

import argparse
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from arguments import positive
from lightconv_mt.mixers import MIXERS, MixerConfig, MixerSlot
from lightconv_mt.ops import Backend


class Size(NamedTuple):
    """The sizes that a mixer is built for."""

    dim: int
    ffn_dim: int
    num_heads: int


class Product(NamedTuple):
    """A product with weights: (rows, inner) by (inner, outer); a convolution's inner is K C."""

    rows: int
    inner: int
    outer: int

    @property
    def multiply_adds(self) -> int:
        """Those of the forward pass."""
        return self.rows * self.inner * self.outer


class Cost(NamedTuple):
    """Of one layer; multiply-adds are those of a token, products are in the order of their use."""

    parameters: int
    multiply_adds: float
    products: tuple[Product, ...]


SIZES = {"base": Size(512, 2048, 8), "big": Size(1024, 4096, 16)}
NO_GLU = {"encoder_glu": False, "decoder_glu": False}
WIDE = {"encoder_kernel_sizes": [31], "decoder_kernel_sizes": [31], **NO_GLU}
# Row of the paper's ablation (table 3), mixer, values that differ from its defaults.
ROWS: list[tuple[str, str, dict[str, Any]]] = [
    ("self-attention", "attention", {}),
    ("limited window", "attention", {"encoder_windows": [31], "decoder_windows": [31]}),
    ("CNN", "conv", {}),
    ("CNN depthwise", "depthwise", WIDE),
    ("+ weight sharing", "depthwise", {**WIDE, "num_heads": 16}),
    ("+ softmax, LightConv", "lightconv", WIDE),
    ("+ dynamic weights, DynamicConv", "dynamicconv", WIDE),
    ("AAN", "average_attention", {}),
    ("not there (Chen et al., 2020)", "kernel_attention", WIDE),
]


def count_cost(name: str, values: dict[str, Any], size: Size, *, causal: bool, length: int) -> Cost:
    """Count one layer of a mixer that has these values."""
    slot = MixerSlot(
        layer=0, num_layers=1, causal=causal, num_heads=size.num_heads, ffn_dim=size.ffn_dim
    )
    return count_layer(MIXERS[name](**values), dim=size.dim, slot=slot, length=length)


def count_layer(config: MixerConfig, *, dim: int, slot: MixerSlot, length: int) -> Cost:
    """Build a mixer without memory, run it on one sentence and count.

    Products with weights and between positions are counted, sums and softmaxes are not.
    """
    products: list[Product] = []

    def note(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        assert isinstance(module.weight, torch.Tensor)
        outer = module.weight.shape[0]
        products.append(
            Product(output.numel() // outer, module.weight.numel() // outer, outer),
        )

    # The definition of the convolutions multiplies tap by tap, which torch does not count itself.
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mul: _two_each})
    with torch.device("meta"), torch.no_grad():
        mixer = config.build(dim=dim, slot=replace(slot, backend=Backend.reference)).eval()
        for module in mixer.modules():
            if isinstance(module, nn.Linear | nn.Conv1d):
                module.register_forward_hook(note)
        mask = torch.ones(1, length, dtype=torch.bool)
        with counter:
            mixer(torch.empty(1, length, dim), mask)
    parameters = sum(parameter.numel() for parameter in mixer.parameters())
    return Cost(parameters, counter.get_total_flops() / 2 / length, tuple(products))


def _two_each(*_: Any, out_shape: Any, **__: Any) -> int:
    return 2 * prod(out_shape)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--lengths", type=positive, nargs="+", default=[32, 512], help="of sentences"
    )
    lengths = parser.parse_args().lengths
    titles = [f"{size}: {what}" for size in SIZES for what in ("parameters", *lengths)]
    print(f"| `model/mixer` | row of the paper | {' | '.join(titles)} |")
    print("|---|---|" + "---|" * len(titles))
    for row, name, values in ROWS:
        cells = []
        for size in SIZES.values():
            costs = [
                [
                    count_cost(name, values, size, causal=causal, length=length)
                    for causal in (False, True)
                ]
                for length in lengths
            ]
            cells.append(f"{costs[0][0].parameters / 1e6:.2f}")
            for sides in costs:
                counted = [f"{cost.multiply_adds / 1e6:.2f}" for cost in sides]
                cells.append(" / ".join(dict.fromkeys(counted)))
        print(f"| `{name}` | {row} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
