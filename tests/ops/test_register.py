"""The registered ops: gradients, tracing, compiling, autocast."""

from typing import Any

import pytest
import torch
from cpp_kernels import cpu_backends

from lightconv_mt.ops import Backend, dynamicconv, lightconv
from lightconv_mt.ops.attention import attention
from lightconv_mt.ops.register import dynamicconv_kernel, lightconv_kernel
from lightconv_mt.ops.residual import residual_norm

if Backend.native not in cpu_backends():
    pytest.skip("no C++ compiler", allow_module_level=True)

KERNELS = {
    "lightconv": (lightconv, lightconv_kernel),
    "dynamicconv": (dynamicconv, dynamicconv_kernel),
}


def arguments(name: str) -> tuple[Any, ...]:
    shape = (2, 9, 3, 4) if name == "dynamicconv" else (3, 4)
    x = torch.randn(2, 9, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    return x, weight, 2, True, 0.3, 2**61 + 5


@pytest.mark.parametrize("name", KERNELS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    x, weight, *options = arguments(name)
    assert torch.autograd.gradcheck(
        lambda x, weight: KERNELS[name][1](x, weight, *options), (x, weight)
    )


@pytest.mark.parametrize("name", KERNELS)
def test_torchs_own_checks_pass(name: str) -> None:
    found = torch.library.opcheck(KERNELS[name][1].op, arguments(name))
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", KERNELS)
def test_compiling_and_exporting_see_one_op(name: str) -> None:
    function = KERNELS[name][0]

    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return function(x, weight, padding_left=2, backend=Backend.native) * 2

    x, weight, *_ = arguments(name)
    expected = Module()(x, weight)
    compiled = torch.compile(Module(), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, weight), expected)
    exported = torch.export.export(Module(), (x, weight))
    assert torch.equal(exported.module()(x, weight), expected)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    "types", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)]
)
def test_input_and_weight_may_differ_in_type(
    name: str, types: tuple[torch.dtype, torch.dtype]
) -> None:
    x, weight, *_ = arguments(name)
    x, weight = (
        each.detach().to(kind).requires_grad_()
        for each, kind in zip((x, weight), types, strict=True)
    )
    results = []
    for backend in (Backend.native, Backend.reference):
        y = KERNELS[name][0](x, weight, padding_left=2, backend=backend)
        assert y.dtype is x.dtype
        results.append((y, *torch.autograd.grad(y.float().square().sum(), (x, weight))))
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype is expected.dtype
        torch.testing.assert_close(ours, expected, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("name", ["lightconv", "dynamicconv", "attention", "residual_norm"])
def test_a_second_derivative_is_refused_and_never_zero(name: str) -> None:
    x = torch.randn(1, 5, 4, requires_grad=True)
    weight = torch.randn((1, 5, 2, 3) if name == "dynamicconv" else (2, 3), requires_grad=True)
    vector, heads = torch.ones(4, requires_grad=True), x.unflatten(-1, (2, 2)).transpose(1, 2)
    y = {
        "lightconv": lambda: lightconv(x, weight, padding_left=1, backend=Backend.native),
        "dynamicconv": lambda: dynamicconv(x, weight, padding_left=1, backend=Backend.native),
        "attention": lambda: attention(heads, heads, heads, None, backend=Backend.native),
        "residual_norm": lambda: residual_norm(
            *(x, x, vector, vector),
            **{"eps": 1e-5, "dropout": 0.0, "seed": 1},
            backend=Backend.native,
        ),
    }[name]()
    torch.autograd.grad(y.sum(), x, retain_graph=True)
    with pytest.raises(RuntimeError, match=f"{name} has no second derivative"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_the_short_way_and_torchs_agree_to_the_bit() -> None:
    for name, (_, kernel) in KERNELS.items():
        x, weight, *options = arguments(name)
        for leaves in ((x, weight), (x, weight.detach()), (x.detach(), weight.detach())):
            results = []
            for function in (kernel, kernel.op):
                y = function(*leaves, *options)
                wanted = [leaf for leaf in leaves if leaf.requires_grad]
                assert y.requires_grad == bool(wanted)
                more = torch.autograd.grad(y.sin().sum(), wanted) if wanted else ()
                results.append((y, *more))
            for ours, theirs in zip(*results, strict=True):
                assert torch.equal(ours, theirs)
        with torch.no_grad():
            assert not kernel(x, weight, *options).requires_grad


def test_tensors_without_data_of_their_own_take_torchs_way() -> None:
    """A kernel would read what is not there."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    x, weight, *options = arguments("lightconv")
    x, weight = x.detach(), weight.detach()
    with FakeTensorMode() as mode:
        fake = lightconv_kernel(mode.from_tensor(x), mode.from_tensor(weight), *options)
    assert fake.shape == x.shape and type(fake) is not torch.Tensor
    assert lightconv_kernel(x.to("meta"), weight.to("meta"), *options).device.type == "meta"
