"""Counts of the cost model against closed forms and torch's own; its clock with time made up."""

import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import cost_model
from costs import counts, machine
from costs.clock import Clock, time_step, watch_parts
from costs.counts import OPTIMISER_BYTES, PARTS, Count, Shape, count_parts
from costs.table import Row, as_text, total
from lightconv_mt.data.batching import Batch, collate
from lightconv_mt.data.tokenizer import TRAINED_IDS
from lightconv_mt.mixers import MIXERS
from lightconv_mt.mixers.base import KernelWidthsConfig
from lightconv_mt.model.transformer import ModelConfig, Seq2SeqTransformer, Tying
from lightconv_mt.ops import Backend
from lightconv_mt.train.loss import LabelSmoothedLoss, Objective
from lightconv_mt.train.optim import OptimConfig
from mixer_costs import Product

C, F, H, K, V, LAYERS = 16, 24, 4, 3, 50, 2
B, S, T = 3, 7, 5


def build(mixer: str, **values: Any) -> Seq2SeqTransformer:
    kind = MIXERS[mixer]
    widths = {"encoder_kernel_sizes": [K], "decoder_kernel_sizes": [K]}
    config = ModelConfig(
        mixer=kind(**(widths if issubclass(kind, KernelWidthsConfig) else {})),
        dim=C,
        ffn_dim=F,
        num_heads=H,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS + 1,
        **values,
    )
    return Seq2SeqTransformer(
        config,
        src_vocab_size=V,
        tgt_vocab_size=V,
        src_pad_id=1,
        tgt_pad_id=1,
        backend=Backend.torch,
    )


def batch_of(sentences: int = B) -> Batch:
    rows = [([4] * (S - 1) + [2], [5] * (T - 1) + [2])] * sentences
    return collate(rows, TRAINED_IDS, TRAINED_IDS)


@pytest.mark.parametrize("mixer", sorted(MIXERS))
@pytest.mark.parametrize(
    "values",
    [
        {"tying": Tying.all, "pre_norm": True},
        {"tying": Tying.none, "decoder_dim": 2 * C, "decoder_ffn_dim": F + 1},
    ],
)
def test_parts_have_all_parameters(mixer: str, values: dict[str, Any]) -> None:
    model = build(mixer, **values)
    found = count_parts(model, Shape.of(batch_of(), twice=False))
    assert tuple(found) == PARTS
    expected = sum(parameter.numel() for parameter in model.parameters())
    assert sum(count.parameters for count in found.values()) == expected
    assert found[counts.OPTIMISER].moved(2) == OPTIMISER_BYTES * expected
    assert all(count.moved(2) > 0 for count in found.values())
    assert found[counts.ENCODER_MIXERS].multiply_adds > 0


def test_multiply_adds_are_the_formulas() -> None:
    found = count_parts(build("lightconv"), Shape.of(batch_of(), twice=False), accumulate=4)
    sources, targets = B * S, B * T
    expected = {
        counts.EMBEDDING: 0,
        counts.ENCODER_MIXERS: LAYERS * sources * (3 * C * C + K * C),
        counts.ENCODER_FFN: LAYERS * sources * 2 * C * F,
        counts.DECODER_MIXERS: (LAYERS + 1) * targets * (3 * C * C + K * C),
        counts.SOURCE_ATTENTION: (LAYERS + 1)
        * (2 * sources * C * C + 2 * targets * C * C + 2 * targets * S * C),
        counts.DECODER_FFN: (LAYERS + 1) * targets * 2 * C * F,
        counts.NORMS: 0,
        counts.LOSS: targets * C * V,
        counts.OPTIMISER: 0,
    }
    assert {part: count.multiply_adds for part, count in found.items()} == expected
    size = sum(count.parameters for count in found.values())
    assert found[counts.OPTIMISER].moved(2) == OPTIMISER_BYTES * size / 4
    twice = count_parts(build("lightconv"), Shape.of(batch_of(), twice=True))
    doubled = {part: 2 * value for part, value in expected.items()}
    assert {part: count.multiply_adds for part, count in twice.items()} == doubled


@pytest.mark.parametrize("mixer", ["attention", "conv", "average_attention"])
def test_a_whole_step_multiplies_three_times_what_is_counted_forward(mixer: str) -> None:
    """Torch counts every product of a forward and backward pass."""
    model = build(mixer).train()
    batch = batch_of(200)  # more rows than a chunk of the loss
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        Objective(model, LabelSmoothedLoss(0.1))(batch).loss.backward()
    counted = count_parts(model, Shape.of(batch, twice=False)).values()
    forward = sum(count.multiply_adds for count in counted)
    # Scales of queries and keys, multiplications of means and gates: elementwise, and small.
    assert counter.get_total_flops() / 2 / 3 == pytest.approx(forward, rel=0.03)


def test_bytes_are_each_tensor_once() -> None:
    count = Count()
    count.add_products([Product(10, 3, 5)], times=2)
    # Forward x, W, y; backward dy, W, dx, and dy, x; the gradient of W in float32.
    once = 10 * 3 + 3 * 5 + 10 * 5 + 10 * 5 + 3 * 5 + 10 * 3 + 10 * 5 + 10 * 3
    assert count.moved(2) == 2 * (2 * once + 4 * 3 * 5)
    assert count.multiply_adds == 2 * 10 * 3 * 5
    between = Count()
    between.add_products([Product(10, 3, 5), Product(10, 4, 3)])
    apart = Count()
    apart.add_products([Product(10, 3, 5)])
    apart.add_products([Product(10, 4, 3)])
    assert between.numbers - apart.numbers == 3 * 10 * 5 + 2 * 10 * 4


def test_a_limit_is_the_longer_of_arithmetic_and_traffic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "fastest", lambda *_: 0.5)
    found = machine.Machine(torch.device("cpu"))
    assert found.bandwidth == 4 * machine.COPIED
    count = Count(products=[Product(2, 3, 4)], repeats=[2.0], others=10.0, numbers=1.0)
    assert found.limit(count, torch.float32, top_speed=6.0) == pytest.approx(5.0 + 2 * 1.0)
    assert found.speeds({"part": count}, [torch.float32]) == {Product(2, 3, 4): [3 * 24 / 1.0]}
    count.wide_bytes = 9 * found.bandwidth
    assert found.limit(count, torch.bfloat16, top_speed=6.0) == pytest.approx(9.0)


class Slow(torch.autograd.Function):
    now = 0.0  # seconds, which nothing else adds to

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        Slow.now += 1.0
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        Slow.now += 2.0
        return gradient


def slow_down(module: nn.Module, method: str = "forward") -> None:
    call = getattr(module, method)

    def slowly(*arguments: Any) -> Any:
        first, *rest = arguments
        return call(Slow.apply(first), *rest)

    setattr(module, method, slowly)


WATCHED = [
    (counts.ENCODER_MIXERS, "encoder.layers.0.mixer", "forward"),
    (counts.ENCODER_FFN, "encoder.layers.1.feed_forward", "forward"),
    (counts.DECODER_MIXERS, "decoder.layers.1.mixer", "forward"),
    (counts.SOURCE_ATTENTION, "decoder.layers.0.source_attention", "forward"),
    (counts.SOURCE_ATTENTION, "decoder.layers.2.source_attention", "project"),
    (counts.DECODER_FFN, "decoder.layers.2.feed_forward", "forward"),
    (counts.NORMS, "decoder.layers.1.mixer_sublayer", "leave"),
]


@pytest.mark.parametrize(("part", "name", "method"), WATCHED)
def test_time_goes_to_the_part_that_takes_it(
    part: str, name: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("costs.clock.time", SimpleNamespace(perf_counter=lambda: Slow.now))
    model = build("lightconv", dropout=0.0).train()
    slow_down(model.get_submodule(name), method)
    loss = LabelSmoothedLoss(0.1)
    clock = Clock(torch.device("cpu"))
    watch_parts(clock, model, loss)
    clock.restart()
    Objective(model, loss)(batch_of()).loss.backward()
    clock.give_to(counts.NORMS)
    assert clock.seconds == {**dict.fromkeys(PARTS, 0.0), part: 3.0}  # forward and backward


def test_the_clock_changes_no_gradient() -> None:
    gradients = []
    for watched in (False, True):
        torch.manual_seed(1)
        model, loss = build("dynamicconv").double().train(), LabelSmoothedLoss(0.1)
        if watched:
            watch_parts(Clock(torch.device("cpu")), model, loss)
        torch.manual_seed(2)
        Objective(model, loss)(batch_of()).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    # Where several gradients meet they may be added in another order.
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_step_is_the_sum_of_its_parts_and_the_optimiser_s_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = itertools.count()  # a second between any two looks at the clock
    monkeypatch.setattr("costs.clock.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    seconds = []
    for accumulate in (1, 1000):
        seconds.append(
            time_step(
                build("lightconv"),
                batch_of(),
                optim=OptimConfig(),
                label_smoothing=0.1,
                rdrop=1.0,
                precision=torch.bfloat16,
                device=torch.device("cpu"),
                rounds=2,
                accumulate=accumulate,
            )
        )
    assert [tuple(each) for each in seconds] == [PARTS, PARTS]
    assert min(min(each.values()) for each in seconds) > 0.0
    assert seconds[0][counts.OPTIMISER] == 1.0
    assert seconds[1] == {**seconds[0], counts.OPTIMISER: 1.0 / 1000}


def test_the_table_adds_up() -> None:
    rows = [
        Row(part, 10 * n, n, 3.0 * n, 4.0 * n, {"fp32": n / 1e6, "bf16": n / 2e6}, n / 1e5, "bf16")
        for n, part in enumerate(PARTS, start=1)
    ]
    whole = total(rows)
    count = sum(range(1, len(PARTS) + 1))
    assert (whole.parameters, whole.forward, whole.both) == (10 * count, count, 3 * count)
    assert whole.share == pytest.approx(0.05)
    # The whole's share is the mean of the parts', by the time that each takes.
    weighted = sum(row.share * row.measured for row in rows) / whole.measured
    assert whole.share == pytest.approx(weighted)
    lines = as_text(rows).splitlines()
    shares = [int(line.split()[-1].rstrip("%")) for line in lines[1 : len(PARTS) + 1]]
    assert sum(shares) == pytest.approx(100, abs=len(PARTS) / 2)
    assert lines[-2].startswith("all ") and lines[-2].endswith("100%")
    assert lines[-1].split() == ["tokens/s", "22,222", "44,444", "2,222"]
    assert len({line.index("%") for line in lines[1:-1]}) == 1


def test_the_script_runs_without_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "PATIENCE", 0.0)
    words = "experiment=multi30k_tiny model/mixer=lightconv train.rdrop=1.0 runtime.device=cpu"
    sizes = "model.dim=32 model.ffn_dim=64 batch.max_tokens=64 batch.max_length=16"
    lengths = "--random --source-length 9 --target-length 7 --rounds 1"
    file = tmp_path / "costs.json"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["cost_model.py", *f"{words} {sizes} {lengths} --json {file}".split()]
    )
    assert cost_model.main() == 0
    out = capsys.readouterr().out
    assert "(126 x 32) (32 x 64)" in out  # R-Drop reads 7 sentences of 9 tokens twice
    assert "source (7, 9), target (7, 7), 49 target tokens; random tokens" in out
    assert [path.name for path in tmp_path.iterdir()] == ["costs.json"]
    found = json.loads(file.read_text())
    *parts, whole = found["rows"]
    assert [row["part"] for row in parts] == [*PARTS]
    assert all(row["part"] in out for row in parts)
    for key in ("parameters", "forward", "both", "moved", "measured"):
        assert sum(row[key] for row in parts) == pytest.approx(whole[key])
    monkeypatch.setattr(sys, "argv", [*sys.argv[:-1], str(tmp_path / "no" / "costs.json")])
    assert cost_model.main() == 3
    told = capsys.readouterr()
    assert "(126 x 32) (32 x 64)" in told.out and "tokens/s" in told.out, "the table is not lost"
    assert f"error: cannot write {tmp_path}/no/costs.json: No such file" in told.err
    monkeypatch.setattr(sys, "argv", ["cost_model.py", "experiment=multi30k_tiny"])
    monkeypatch.setenv("LCMT_DATA", str(tmp_path / "none"))
    assert cost_model.main() == 3
    assert "--random needs no data" in capsys.readouterr().err
