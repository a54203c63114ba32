"""Products with weights: values and gradients against float64, and who computes them."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import profile

from lightconv_mt.mixers.linear import Linear
from lightconv_mt.ops import Backend, products
from lightconv_mt.ops.products import add_matmul_, linear, linear_relu

ONEDNN = "mkldnn::_linear_pointwise"
# Rows, inputs, outputs; large ones come in pieces that fill no vector too.
LARGE = [(256, 256, 256), (1001, 257, 263), (300, 8001, 9), (999, 31, 2200), (4096, 256, 1024)]
SMALL = [(255, 256, 256), (1000, 128, 511), (1, 3, 2)]

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN"
)
narrow_only = pytest.mark.skipif(
    torch.bfloat16 not in products._types_of_onednn(),
    reason="oneDNN makes no products in bfloat16 on this CPU",
)
backends = pytest.mark.parametrize("backend", [Backend.torch, Backend.native])


@pytest.fixture
def without_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_has_tiles", lambda: False)


@pytest.fixture
def with_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU that has them; where there are none the same is computed, only slower."""
    monkeypatch.setattr(products, "_has_tiles", lambda: True)


@pytest.fixture(params=[False, True])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """As on a CPU that has them, and as on one that has not."""
    monkeypatch.setattr(products, "_has_tiles", lambda: request.param)
    return bool(request.param)


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
    rows: int, inputs: int, outputs: int, with_bias: bool, tiles: bool
) -> None:
    x, weight, upstream = draw(rows, inputs), draw(outputs, inputs), draw(outputs, rows).T
    given = [x, weight, *([draw(outputs)] if with_bias else [])]
    ours = [tensor.clone().requires_grad_() for tensor in given]
    wide = [tensor.double().requires_grad_() for tensor in given]
    y, expected = linear(*ours), F.linear(*wide)
    assert_near(y, expected, inputs)
    large = (rows, inputs, outputs) in LARGE and not tiles  # where MKL is as fast
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


@pytest.mark.usefixtures("without_tiles")
def test_gradients_that_nobody_asks_for_are_not_computed() -> None:
    x, weight, bias = draw(300, 256), draw(256, 256), draw(256)
    weight.requires_grad_()
    y = linear(x, weight, bias)
    assert by_onednn(lambda: y.sum().backward()) == 0
    assert x.grad is None and bias.grad is None and weight.grad is not None
    x.requires_grad_()
    frozen = linear(x, weight.detach(), bias)
    assert by_onednn(lambda: frozen.sum().backward()) == 1


@narrow_only
@pytest.mark.usefixtures("without_tiles")
@pytest.mark.skipif(
    torch.__version__ < (2, 13), reason="older versions make some of these in another way"
)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), LARGE + SMALL)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_has_the_bits_of_torch_s_products(
    rows: int, inputs: int, outputs: int, with_bias: bool, autocast: bool
) -> None:
    dtype = torch.float32 if autocast else torch.bfloat16
    shapes = (rows, inputs), (outputs, inputs), *([(outputs,)] if with_bias else [])
    ours, theirs = ([draw(*shape).to(dtype).requires_grad_() for shape in shapes] for _ in range(2))
    upstream = draw(rows, outputs).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, expected = linear(*ours), F.linear(*theirs)
        assert by_onednn(lambda: linear(*ours)) == ((rows, inputs, outputs) in LARGE)
    assert y.dtype is torch.bfloat16 and torch.equal(y, expected)
    for output in (y, expected):
        output.backward(upstream)
    for tensor, other in zip(ours, theirs, strict=True):
        assert tensor.grad is not None and other.grad is not None
        assert tensor.grad.dtype is dtype and torch.equal(tensor.grad, other.grad)


@backends
@pytest.mark.parametrize(("rows", "inputs", "outputs"), LARGE + SMALL)
@pytest.mark.usefixtures("tiles")
def test_relu_s_values_and_every_gradient_are_those_of_float64(
    rows: int, inputs: int, outputs: int, backend: Backend
) -> None:
    given = draw(rows, inputs), draw(outputs, inputs), draw(outputs)
    upstream = draw(outputs, rows).T
    ours = [tensor.clone().requires_grad_() for tensor in given]
    y = linear_relu(*ours, backend=backend)
    assert torch.equal(y, linear(*given).relu())
    y.backward(upstream)
    x, weight, _ = (tensor.double() for tensor in given)
    slope = upstream.double() * (y > 0)
    expected = slope @ weight, slope.T @ x, slope.sum(0)
    for tensor, other, terms in zip(ours, expected, (outputs, rows, rows), strict=True):
        assert tensor.grad is not None
        assert_near(tensor.grad, other, terms)


@narrow_only
@pytest.mark.usefixtures("without_tiles")
@backends
def test_relu_in_bfloat16_masks_the_same_and_sums_no_worse(backend: Backend) -> None:
    shapes = (5, 211, 256), (263, 256), (263,)
    ours, theirs = ([draw(*shape).requires_grad_() for shape in shapes] for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = linear_relu(*ours, backend=backend), F.linear(*theirs).relu()
    assert torch.equal(y, expected)
    for output in (y, expected):
        output.backward(draw(5, 211, 263).to(torch.bfloat16))
    for tensor, other in zip(ours[:2], theirs[:2], strict=True):
        assert tensor.grad is not None and torch.equal(tensor.grad, other.grad)
    sums = (draw(5, 211, 263).to(torch.bfloat16) * (expected > 0)).double().sum((0, 1))
    assert ours[2].grad is not None
    torch.testing.assert_close(ours[2].grad.double(), sums, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (63, 17), (64, 16), (1000, 131)])
def test_the_pass_in_cpp_masks_as_torch_and_sums_alike_by_any_threads(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    grad, y = draw(*shape).to(dtype), draw(*shape).flip(-1).to(dtype).relu()
    grad[grad > 2], y[y > 2] = float("inf"), float("nan")  # as torch, which passes both on
    masked, sums = products._relu_backward(grad, y, Backend.native)
    assert torch.equal(masked, torch.ops.aten.threshold_backward(grad, y, 0))
    exact = masked.double().sum(0)
    rounding = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps * shape[0])
    torch.testing.assert_close(sums.double(), exact, rtol=rounding, atol=rounding)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(products._relu_backward(grad, y, Backend.native)[1], sums)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("why", ["no gradient", "float16", "float64", "mixed", "compiling"])
def test_what_onednn_is_not_asked_for_is_torch_s_to_the_bit(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype = {"float16": torch.float16, "float64": torch.float64}.get(why, torch.float32)
    x, weight, bias = (draw(*shape).to(dtype) for shape in ((600, 256), (256, 256), (256,)))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: why == "compiling")
    found: list[Tensor] = []
    grad = torch.set_grad_enabled(why != "no gradient")
    with grad, torch.autocast("cpu", torch.float16, enabled=why == "mixed"):
        assert by_onednn(lambda: found.append(linear(x, weight, bias))) == 0
        assert torch.equal(found[0], F.linear(x, weight, bias))
        with_relu = linear_relu(x, weight, bias, backend=Backend.torch)
        assert torch.equal(with_relu, F.linear(x, weight, bias).relu())


@pytest.mark.parametrize("shape", [(256,), (0, 256), (2, 0, 256), (3, 1, 100, 256)])
def test_any_number_of_axes_and_rows(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_ROWS", 0)
    x, weight, bias = draw(*shape).requires_grad_(), draw(300, 256), draw(300)
    for y in (linear(x, weight, bias), linear_relu(x, weight, bias, backend=Backend.native)):
        assert y.shape == (*shape[:-1], 300)
        (slope,) = torch.autograd.grad(y.sum(), x)
        assert slope.shape == shape


@pytest.mark.usefixtures("without_tiles")
def test_sizes_that_decide_are_those_of_weights_and_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = draw(30, 16), draw(16, 16)
    assert by_onednn(lambda: linear(x, weight)) == 0
    monkeypatch.setattr(products, "_WEIGHTS", 256)
    assert by_onednn(lambda: linear(x, weight)) == 0
    monkeypatch.setattr(products, "_ROWS", 30)
    assert by_onednn(lambda: linear(x, weight)) == 1


@given(rows=st.integers(products.PIECES[-1], 20_000))
def test_pieces_are_all_rows_and_of_few_sizes(rows: int) -> None:
    pieces = list(products._pieces(rows))
    assert {piece.stop - piece.start for piece in pieces} <= set(products.PIECES)
    assert pieces[0].start == 0 and pieces[-1].stop == rows
    overlap = [before.stop - piece.start for before, piece in pairwise(pieces)]
    assert all(again == 0 for again in overlap[:-1])
    assert all(0 <= again < products.PIECES[-1] for again in overlap[-1:])


@narrow_only
@pytest.mark.usefixtures("with_tiles")
@backends
@pytest.mark.parametrize(("rows", "inputs", "outputs"), LARGE + SMALL)
@pytest.mark.parametrize("kind", ["plain", "bias", "relu"])
def test_products_by_tiles_are_those_of_float64(
    rows: int, inputs: int, outputs: int, kind: str, backend: Backend
) -> None:
    """Of what bfloat16 makes of the inputs; the gradients of float32 weights are not rounded."""
    with_bias = [draw(outputs)] if kind != "plain" else []
    ours = [each.requires_grad_() for each in (draw(rows, inputs), draw(outputs, inputs))]
    ours += [each.requires_grad_() for each in with_bias]
    upstream = draw(rows, outputs).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = linear_relu(*ours, backend=backend) if kind == "relu" else linear(*ours)
    y.backward(upstream)
    wide = [tensor.detach().bfloat16().double() for tensor in ours]
    expected, slope = F.linear(*wide), upstream.double()
    if kind == "relu":
        expected, slope = expected.relu(), slope * (y > 0)
    assert y.dtype is torch.bfloat16
    close = partial(torch.testing.assert_close, check_dtype=False, rtol=2**-7)
    close(y, expected, atol=1e-5 * inputs)
    gradients = [tensor.grad for tensor in ours]
    close(gradients[0], slope @ wide[1], atol=1e-5 * outputs)
    in_pieces = rows >= products.PIECES[-1] and products._gemm_of_mkl() is not None
    weight_close = partial(close, rtol=0) if in_pieces else close
    weight_close(gradients[1], slope.T @ wide[0], atol=1e-6 * rows)
    if with_bias:
        close(gradients[2], slope.sum(0), atol=1e-6 * rows)


@narrow_only
@pytest.mark.usefixtures("with_tiles")
def test_products_by_tiles_have_rows_of_few_sizes() -> None:
    layer = Linear(64, 96)
    with profile(record_shapes=True) as seen, torch.autocast("cpu", torch.bfloat16):
        for rows in (256, 300, 1001, 4095):
            layer(torch.randn(rows, 64, requires_grad=True)).sum().backward()
    made = [event for event in seen.events() if event.name in ("aten::mm", "aten::addmm")]
    sizes = {shape[0] for event in made for shape in event.input_shapes if len(shape) == 2}
    assert made and sizes <= {64, 96, *products.PIECES}


@narrow_only
@pytest.mark.usefixtures("with_tiles")
@pytest.mark.parametrize("with_mkl", [False, True])
def test_gradients_of_weights_are_added(with_mkl: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if with_mkl and products._gemm_of_mkl() is None:
        pytest.skip("this torch has no MKL")
    if not with_mkl:
        monkeypatch.setattr(products, "_gemm_of_mkl", lambda: None)
    total, before = draw(33, 65), draw(33, 65).double()
    grad, rows = draw(33, 700).bfloat16().T, draw(700, 65).bfloat16()
    assert add_matmul_(total, grad, rows) is total
    tolerance = {"rtol": 0, "atol": 1e-4} if with_mkl else {"rtol": 2**-7, "atol": 0.3}
    expected = before + grad.T.double() @ rows.double()
    torch.testing.assert_close(total.double(), expected, **tolerance)
