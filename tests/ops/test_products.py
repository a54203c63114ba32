"""Products with weights: values and gradients against float64, and who computes them."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import profile

from lightconv_mt.mixers.linear import Linear
from lightconv_mt.ops import products
from lightconv_mt.ops.products import linear

ONEDNN = "mkldnn::_linear_pointwise"
# Rows, inputs, outputs; large ones come in pieces that fill no vector too.
LARGE = [(256, 256, 256), (1001, 257, 263), (300, 8001, 9), (999, 31, 2200), (4096, 256, 1024)]
SMALL = [(255, 256, 256), (1000, 128, 511), (1, 3, 2)]

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN"
)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def by_onednn(function: Callable[[], object]) -> int:
    """How many of oneDNN's products a call makes."""
    with profile() as seen:
        function()
    return sum(event.count for event in seen.key_averages() if event.key == ONEDNN)


def assert_near(found: Tensor, expected: Tensor, terms: int) -> None:
    """Sums of so many terms of size one, in float32."""
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6 * terms)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), LARGE + SMALL)
@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_every_gradient_are_those_of_float64(
    rows: int, inputs: int, outputs: int, with_bias: bool
) -> None:
    x, weight, upstream = draw(rows, inputs), draw(outputs, inputs), draw(outputs, rows).T
    given = [x, weight, *([draw(outputs)] if with_bias else [])]
    ours = [tensor.clone().requires_grad_() for tensor in given]
    wide = [tensor.double().requires_grad_() for tensor in given]
    y, expected = linear(*ours), F.linear(*wide)
    assert_near(y, expected, inputs)
    large = (rows, inputs, outputs) in LARGE
    assert by_onednn(lambda: linear(*ours)) == large
    assert by_onednn(lambda: y.backward(upstream)) == large
    expected.backward(upstream.double())
    for tensor, other, terms in zip(ours, wide, (outputs, rows, rows), strict=False):
        assert tensor.grad is not None and other.grad is not None
        assert_near(tensor.grad, other.grad, terms)


def test_batches_of_sentences_written_in_place_as_the_feed_forward_does() -> None:
    x, layer = draw(7, 256, 41).transpose(1, 2), Linear(256, 300)
    x.requires_grad_()
    wide = x.detach().double().requires_grad_()
    y = layer(x).relu_()
    expected = F.linear(wide, layer.weight.detach().double(), layer.bias.detach().double()).relu()
    assert y.shape == (7, 41, 300)
    assert_near(y, expected, 256)
    y.sum().backward()  # whose gradient is one number, expanded
    expected.sum().backward()
    assert x.grad is not None and wide.grad is not None
    assert_near(x.grad, wide.grad, 300)


def test_gradients_that_nobody_asks_for_are_not_computed() -> None:
    x, weight, bias = draw(300, 256), draw(256, 256), draw(256)
    weight.requires_grad_()
    y = linear(x, weight, bias)
    assert by_onednn(lambda: y.sum().backward()) == 0
    assert x.grad is None and bias.grad is None and weight.grad is not None
    x.requires_grad_()
    frozen = linear(x, weight.detach(), bias)
    assert by_onednn(lambda: frozen.sum().backward()) == 1


@pytest.mark.parametrize("why", ["no gradient", "autocast", "bfloat16", "float64", "compiling"])
def test_what_is_not_trained_in_float32_is_torch_s_to_the_bit(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype = {"bfloat16": torch.bfloat16, "float64": torch.float64}.get(why, torch.float32)
    x, weight, bias = (draw(*shape).to(dtype) for shape in ((600, 256), (256, 256), (256,)))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: why == "compiling")
    found: list[Tensor] = []
    grad = torch.set_grad_enabled(why != "no gradient")
    with grad, torch.autocast("cpu", enabled=why == "autocast"):
        assert by_onednn(lambda: found.append(linear(x, weight, bias))) == 0
        assert torch.equal(found[0], F.linear(x, weight, bias))


def test_sizes_that_decide_are_those_of_weights_and_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = draw(30, 16), draw(16, 16)
    assert by_onednn(lambda: linear(x, weight)) == 0
    monkeypatch.setattr(products, "_WEIGHTS", 256)
    assert by_onednn(lambda: linear(x, weight)) == 0
    monkeypatch.setattr(products, "_ROWS", 30)
    assert by_onednn(lambda: linear(x, weight)) == 1
