"""Every backend against the reference, outputs and gradients; what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightconv_mt.errors import ConfigError
from lightconv_mt.ops import Backend, dispatch, dynamicconv, lightconv, resolve_backend
from lightconv_mt.ops.banded import LONGEST_BAND
from lightconv_mt.ops.library import NativeUnavailableError

FAST = [Backend.auto, Backend.torch, Backend.native]


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    time=st.sampled_from([0, 1, 2, 3, 5, 17, 40, LONGEST_BAND, LONGEST_BAND + 1]),
    heads=st.integers(1, 4),
    share=st.integers(1, 3),
    width=st.sampled_from([1, 2, 3, 4, 7, 15, 31]),
    place=st.floats(0, 1),
    normalize=st.booleans(),
    dropout=st.sampled_from([0.0, 0.3]),
)
@pytest.mark.parametrize("backend", FAST)
def test_backend_equals_reference(
    backend: Backend,
    batch: int,
    time: int,
    heads: int,
    share: int,
    width: int,
    place: float,
    normalize: bool,
    dropout: float,
) -> None:
    options = {
        "padding_left": int(place * (width - 1)),
        "normalize": normalize,
        "dropout": dropout,
        "seed": 9,
    }
    x = (
        torch.randn(time, batch, heads * share, dtype=torch.float64)
        .transpose(0, 1)
        .requires_grad_()
    )
    shared = torch.randn(heads, width, dtype=torch.float64, requires_grad=True)
    own = torch.randn(batch, time, heads, width, dtype=torch.float64, requires_grad=True)
    for function, weight in ((lightconv, shared), (dynamicconv, own)):
        y = function(x, weight, backend=backend, **options)
        expected = function(x, weight, backend=Backend.reference, **options)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-10)
        upstream = torch.randn_like(y)
        gradients = torch.autograd.grad(y, (x, weight), upstream)
        for gradient, other in zip(
            gradients, torch.autograd.grad(expected, (x, weight), upstream), strict=True
        ):
            torch.testing.assert_close(gradient, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", list(Backend))
def test_impossible_arguments_are_refused(backend: Backend) -> None:
    x = torch.randn(2, 5, 6)
    with pytest.raises(ValueError, match="6 channels cannot be shared by 4 heads"):
        lightconv(x, torch.randn(4, 3), padding_left=2, backend=backend)
    with pytest.raises(ValueError, match=r"padding_left is 3 but must lie in 0\.\.2"):
        lightconv(x, torch.randn(2, 3), padding_left=3, backend=backend)
    with pytest.raises(ValueError, match="weight is for"):
        dynamicconv(x, torch.randn(2, 4, 2, 3), padding_left=2, backend=backend)


def test_auto_is_resolved_and_other_choices_are_kept() -> None:
    cpu = torch.device("cpu")
    assert resolve_backend(Backend.auto, device=cpu) is not Backend.auto
    for backend in (Backend.reference, Backend.torch, Backend.native):
        assert resolve_backend(backend, device=cpu) is backend


def test_without_a_compiler_auto_takes_plain_torch_and_native_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(march: str = "native") -> None:
        raise NativeUnavailableError("there is no C++ compiler")

    monkeypatch.setattr(dispatch, "load_library", no_compiler)
    dispatch._fastest.cache_clear()
    cpu = torch.device("cpu")
    with caplog.at_level("INFO"):
        assert resolve_backend(Backend.auto, device=cpu) is Backend.torch
    assert "torch (not native: there is no C++ compiler)" in caplog.text
    with pytest.raises(ConfigError, match="cannot run: there is no C.. compiler; set runtime.ker"):
        resolve_backend(Backend.native, device=cpu)
    with pytest.raises(ConfigError, match="runs on CPUs, not on cuda"):
        resolve_backend(Backend.native, device=torch.device("cuda"))
    dispatch._fastest.cache_clear()


def test_triton_is_for_gpus() -> None:
    remedy = "triton runs on GPUs, not on cpu; set runtime.device=cuda where there is one"
    with pytest.raises(ConfigError, match=remedy):
        resolve_backend(Backend.triton, device=torch.device("cpu"))
    with pytest.raises(ConfigError, match=remedy):
        lightconv(torch.randn(1, 3, 4), torch.randn(2, 3), padding_left=2, backend=Backend.triton)


@pytest.mark.parametrize("missing", [False, True])
def test_auto_takes_triton_on_gpus_where_it_imports(
    missing: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def load(name: str) -> None:
        if missing:
            raise ModuleNotFoundError("No module named 'triton'")

    monkeypatch.setattr(dispatch, "import_module", load)
    dispatch._fastest.cache_clear()
    gpu = torch.device("cuda")
    with caplog.at_level("INFO"):
        chosen = resolve_backend(Backend.auto, device=gpu)
    assert chosen is (Backend.torch if missing else Backend.triton)
    assert ("torch (not triton: No module named 'triton')" in caplog.text) is missing
    if missing:
        with pytest.raises(ConfigError, match="triton cannot run: No module named 'triton'; set"):
            resolve_backend(Backend.triton, device=gpu)
    else:
        assert resolve_backend(Backend.triton, device=gpu) is Backend.triton
    assert resolve_backend(Backend.auto, device=torch.device("mps")) is Backend.torch
    dispatch._fastest.cache_clear()


def test_tensors_on_another_device_than_the_kernels_are_refused() -> None:
    x, weight = torch.randn(1, 3, 4, device="meta"), torch.randn(2, 3, device="meta")
    with pytest.raises(ConfigError, match="native runs on CPUs, not on meta"):
        lightconv(x, weight, padding_left=2, backend=Backend.native)
