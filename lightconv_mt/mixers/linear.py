"""The linear layer of mixers and models."""

from torch import Tensor, nn

from lightconv_mt.ops.products import linear


class Linear(nn.Linear):
    """`nn.Linear` by `ops.products`, which trains faster in float32 on CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return linear(x, self.weight, self.bias)
