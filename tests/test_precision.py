"""`runtime.precision=auto`: what it stands for, and that a run goes on in what it began with."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_language import Configure, weights

from lightconv_mt import precision, rehearsal, training
from lightconv_mt.config import Device, Precision, RuntimeConfig, TrainRunConfig, load_run_config
from lightconv_mt.errors import ConfigError
from lightconv_mt.precision import bf16_gain, choose_precision, settle_precision
from lightconv_mt.train.distributed import Distributed

CPU = torch.device("cpu")


@pytest.fixture
def device() -> Device:
    return Device.cpu


def measure(monkeypatch: pytest.MonkeyPatch, gain: float) -> None:
    """As if on a machine that multiplies so many times as fast in bfloat16."""
    monkeypatch.setattr(precision, "bf16_gain", lambda: gain)


def with_precision(config: TrainRunConfig, wanted: Precision) -> TrainRunConfig:
    return replace(config, runtime=RuntimeConfig(device=Device.cpu, threads=1, precision=wanted))


@pytest.mark.parametrize(("gain", "chosen"), [(0.1, "fp32"), (1.1, "fp32"), (2.5, "bf16")])
def test_auto_is_bf16_where_that_pays(
    gain: float, chosen: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    measure(monkeypatch, gain)
    caplog.set_level("INFO", "lightconv_mt")
    assert choose_precision(Precision.auto, CPU) is Precision[chosen]
    assert f"precision: {chosen}; bf16 multiplies {gain:.2g} times as fast here" in caplog.text


@pytest.mark.parametrize("wanted", [each for each in Precision if each is not Precision.auto])
def test_what_is_named_is_not_measured(wanted: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bf16_gain", None)
    assert choose_precision(wanted, CPU) is wanted


@pytest.mark.gpu
def test_a_gpu_has_instructions_for_bf16_or_has_not() -> None:
    has = torch.cuda.get_device_capability() >= (8, 0)
    chosen = choose_precision(Precision.auto, torch.device("cuda"))
    assert chosen is (Precision.bf16 if has else Precision.fp32)


def test_measuring_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    bf16_gain.cache_clear()
    assert bf16_gain() > 0.0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_goes_on_in_what_it_began_with(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unbroken = with_precision(configure("unbroken", steps=4), Precision.bf16)
    assert training.train(unbroken) == 0
    measure(monkeypatch, 2.5)
    begun = with_precision(configure("run", steps=2), Precision.auto)
    assert training.train(begun) == 0
    assert load_run_config(begun.run_dir).runtime.precision is Precision.bf16
    measure(monkeypatch, 0.1)  # another machine
    more = with_precision(configure("run", steps=4), Precision.auto)
    assert rehearsal.rehearse(more) == 0
    assert "would go on from step 2 " in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"started with runtime.precision=bf16, not fp32"):
        training.train(with_precision(more, Precision.fp32))
    assert training.train(more) == 0
    found, expected = weights(more), weights(unbroken)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_all_processes_take_that_of_the_main_one(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Second(Distributed):
        @property
        def is_main(self) -> bool:
            return False

        def of_main(self, value: int) -> int:
            return [*Precision].index(Precision.bf16)

    monkeypatch.setattr(precision, "bf16_gain", None)
    config = with_precision(configure(), Precision.auto)
    found = settle_precision(tmp_path / "run", config, CPU, Second())
    assert found == with_precision(config, Precision.bf16)
