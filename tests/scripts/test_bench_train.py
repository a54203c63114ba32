"""Training beside peers: windows on command, one recipe for all sides, losses, table, verdicts."""

import argparse
import gzip
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bench_train
from lightconv_mt.cli import ROOTS
from lightconv_mt.compose import compose
from lightconv_mt.config import Precision, TrainRunConfig, to_typed
from lightconv_mt.data.tokenizer import TokenizerConfig, train_tokenizer
from lightconv_mt.schemas import read_root
from lightconv_mt.train.schedule import InverseSqrtConfig
from peers import fairseq_side, job, nn_transformer, ours, plain_loop, report
from peers.corpus import TOKENIZER, draw_batches
from peers.job import SIZES, Job, Size
from peers.process import SideError, SideProcess, Window
from peers.report import ENOUGH, Row, best_peer, judge_losses, judge_targets, show_table
from peers.sides import MALLOC, SIDES, choose_sides, environment

SIDE = """
from peers.windows import Windows
windows = Windows()
print("printed, but no answer")
windows.open({"version": "toy 1", "parameters": 7, "target_tokens": 99})
update = 0
while True:
    update += 1
    if update == 6:
        raise RuntimeError("no sixth update")
    windows.update(10 * update, 20.0 * update, 10.0 * update)
"""


def start(folder: Path, program: str) -> SideProcess:
    (folder / "side.py").write_text(program)
    variables = environment(SIDES["nn-transformer"], folder, 1)
    command = [sys.executable, "-P", str(folder / "side.py")]
    return SideProcess("toy", command, variables, folder / "log.txt")


def test_a_side_trains_by_the_window_and_ends_with_its_input(tmp_path: Path) -> None:
    side = start(tmp_path, SIDE)
    assert side.about == {"version": "toy 1", "parameters": 7, "target_tokens": 99}
    first, second = side.train(warm=1, updates=2), side.train(warm=0, updates=1)
    assert (first.tokens, second.tokens) == (20 + 30, 40)
    assert first.done == [(10, 20.0, 10.0), (20, 40.0, 20.0), (30, 60.0, 30.0)]
    assert second.done == [(40, 80.0, 40.0)]
    assert first.seconds > 0 and first.speed == first.tokens / first.seconds
    assert first.products > 1e6
    assert side.close() == 0
    assert (tmp_path / "log.txt").read_text() == "printed, but no answer\n"


def test_a_side_that_ends_says_why(tmp_path: Path) -> None:
    side = start(tmp_path, SIDE)
    with pytest.raises(SideError, match="(?s)toy ended with exit code 1.*no sixth update"):
        side.train(warm=3, updates=3)
    assert side.close() == 1  # closing once more is no mistake
    with pytest.raises(SideError, match="(?s)exit code 1.*No module named 'absent'"):
        start(tmp_path, "import absent")


def test_what_is_not_installed_is_named_with_the_way_to_get_it(tmp_path: Path) -> None:
    keys = ["lightconv-bf16", "fairseq-lightconv", "fairseq-lightconv-malloc", "nn-transformer"]
    chosen, lines = choose_sides(keys, tmp_path)
    assert [side.name for side in chosen] == ["ours LightConv", "torch nn.Transformer"]
    assert lines == [
        "fairseq LightConv is left out: fairseq is not installed; pip install --no-deps "
        f"--target {tmp_path}/fairseq fairseq==0.12.2 bitarray"
    ]
    (tmp_path / "fairseq" / "fairseq").mkdir(parents=True)
    assert choose_sides(keys, tmp_path) == ([SIDES[key] for key in keys], [])


def test_without_peers_nothing_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench_train.py", "--peers", str(tmp_path), "--sides", "fairseq-attention"]
    monkeypatch.setattr(sys, "argv", words)
    assert bench_train.main() == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("fairseq Transformer is left out")
    assert printed[1:] == ["nothing is left to measure"]


def test_only_malloc_rows_of_peers_get_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    for key, side in SIDES.items():
        found = environment(side, tmp_path, 2)
        given = {name: value for name, value in found.items() if name.startswith("MALLOC_")}
        assert given == (MALLOC if key.endswith("-malloc") else {}), key
        assert found["OMP_NUM_THREADS"] == "2"
    folders = environment(SIDES["marian"], tmp_path, 2)["PYTHONPATH"].split(os.pathsep)
    assert str(tmp_path / "transformers") in folders


def job_of(model: str, size: str = "tiny", *, corpus: Path, precision: str = "fp32") -> Job:
    return Job(
        model=model,
        size=size,
        precision=precision,
        threads=1,
        seed=1,
        corpus=str(corpus),
        scratch=str(corpus),
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("model", ["lightconv", "dynamicconv", "attention"])
def test_our_side_trains_what_fairseq_s_is_asked_for(model: str, size: str, tmp_path: Path) -> None:
    ordered = job_of(model, size, corpus=tmp_path, precision="bf16")
    root, registers = read_root(ROOTS["train"])
    [plain] = compose("train", ours.words(ordered), root=root, registers=registers)
    config = to_typed(TrainRunConfig, plain)
    words = fairseq_side.words(ordered, tmp_path)
    asked = dict(zip(words[1:], words[2:], strict=False))
    shape: Any = config.model
    for side, layers in (("encoder", shape.encoder_layers), ("decoder", shape.decoder_layers)):
        assert asked[f"--{side}-layers"] == str(layers)
        assert asked[f"--{side}-embed-dim"] == str(shape.dim)
        assert asked[f"--{side}-ffn-embed-dim"] == str(shape.ffn_dim)
        assert asked[f"--{side}-attention-heads"] == str(shape.num_heads)
        if model != "attention":
            kernels = getattr(shape.mixer, f"{side}_kernel_sizes")
            assert asked[f"--{side}-kernel-size-list"] == str(kernels)
            assert getattr(shape.mixer, f"{side}_glu") is False and asked[f"--{side}-glu"] == "0"
            assert float(asked["--weight-dropout"]) == shape.mixer.weight_dropout == 0.1
    assert float(asked["--dropout"]) == shape.dropout == 0.3
    assert float(asked["--attention-dropout"]) == shape.attention_dropout == 0.1
    assert float(asked["--label-smoothing"]) == config.train.label_smoothing == 0.1
    assert int(asked["--max-tokens"]) == config.batch.max_tokens == 4096
    assert float(asked["--lr"]) == config.optim.lr
    assert asked["--adam-betas"] == str((config.optim.beta1, config.optim.beta2))
    assert int(asked["--warmup-updates"]) == config.schedule.warmup_steps
    assert float(asked["--warmup-init-lr"]) == config.schedule.warmup_init_lr
    assert config.runtime.precision is Precision.bf16 and config.runtime.keep_memory


def test_plain_loops_have_the_schedule_and_the_loss_of_the_others() -> None:
    ours_is = InverseSqrtConfig(warmup_steps=job.WARMUP_UPDATES, warmup_init_lr=job.FIRST_LR)
    for done in (0, 7, job.WARMUP_UPDATES - 1, job.WARMUP_UPDATES, 500):
        assert job.learning_rate(done) == pytest.approx(ours_is.lr(done, job.PEAK_LR))
    logits, target = torch.randn(3, 4, 11), torch.randint(2, 11, (3, 4))
    target[1, 2:] = plain_loop.PAD
    loss, nll = plain_loop.smoothed_loss(logits, target)
    for found, smoothing in ((loss, 0.1), (nll, 0.0)):
        expected = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1),
            target.flatten(),
            ignore_index=plain_loop.PAD,
            reduction="sum",
            label_smoothing=smoothing,
        )
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_plain_loops_multiply_in_the_precision_asked_for(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [(np.array([4, 5, 2], dtype=np.int32), np.array([6, 2], dtype=np.int32))]
    monkeypatch.setattr(plain_loop, "read_pairs", lambda corpus: pairs)
    model, seen = torch.nn.Linear(4, plain_loop.VOCABULARY), []

    def forward(src: torch.Tensor, tgt: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(torch.ones(*tgt.shape, 4))
        seen.append(logits.dtype)
        return logits

    class OneWindow:
        def open(self, about: dict[str, Any]) -> None:
            assert about["target_tokens"] == 2

        def update(self, tokens: int, loss: float, nll: float) -> None:
            assert tokens == 2 and math.isfinite(loss) and math.isfinite(nll)
            raise EOFError

    with pytest.raises(EOFError):
        plain_loop.train(
            job_of("attention", corpus=tmp_path, precision=precision),
            OneWindow(),  # type: ignore[arg-type]
            model,
            forward,
            version="",
        )
    assert seen == [{"fp32": torch.float32, "bf16": torch.bfloat16}[precision]]
    assert model.weight.dtype is torch.float32


def test_batches_read_every_pair_once_an_epoch_within_the_budget() -> None:
    generator = np.random.default_rng(1)
    pairs = [
        (np.full(src, place, dtype=np.int32), np.full(tgt, place, dtype=np.int32))
        for place, (src, tgt) in enumerate(generator.integers(1, 20, (200, 2)))
    ]
    batches = draw_batches(pairs, max_tokens=64, seed=1)
    for _ in range(2):
        seen: list[int] = []
        while len(seen) < len(pairs):
            batch = next(batches)
            assert len(batch) * max(len(side) for pair in batch for side in pair) <= 64
            seen += [int(src[0]) for src, _ in batch]
        assert sorted(seen) == list(range(len(pairs)))


def test_the_plain_transformer_sees_neither_padding_nor_the_future() -> None:
    model = nn_transformer.Translation(Size(1, 16, 16, 2, ())).eval()
    src, tgt = torch.tensor([[5, 6, 2]]), torch.tensor([[0, 7, 8]])
    padded, later = torch.tensor([[5, 6, 2, 1, 1]]), torch.tensor([[0, 7, 9]])
    with torch.no_grad():
        expected = model(src, tgt)
        torch.testing.assert_close(model(padded, tgt), expected)
        found = model(src, later)
    torch.testing.assert_close(found[:, :2], expected[:, :2])
    assert not torch.allclose(found[:, 2], expected[:, 2])


def test_our_side_is_lcmt_train_held_between_windows(tmp_path: Path) -> None:
    lines = [f"the {word} dog runs {place}" for place, word in enumerate(["big", "small"] * 30)]
    data = tmp_path / "data" / "multi30k"
    data.mkdir(parents=True)
    for name in ("train", "val", "test_2016_flickr"):
        for language in ("en", "de"):
            with gzip.open(data / f"{name}.{language}.gz", "wt") as file:
                file.write("".join(f"{line}\n" for line in lines))
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=320), lines)
    tokenizer.save(tmp_path, Path(TOKENIZER).stem)
    ordered = job_of("lightconv", corpus=tmp_path)
    variables = {
        **environment(SIDES["lightconv-fp32"], tmp_path, 1),
        "LCMT_DATA": str(tmp_path / "data"),
    }
    command = [sys.executable, "-P", "-m", "peers.ours", ordered.to_json()]
    side = SideProcess("ours", command, variables, tmp_path / "log.txt")
    tokens = sum(len(ids) + 1 for ids in tokenizer.encode_batch(lines))
    assert side.about["target_tokens"] == tokens
    windows = [side.train(warm=0, updates=1) for _ in range(20)]  # one batch is the whole corpus
    assert {window.tokens for window in windows} == {tokens}
    losses = [loss / tokens for window in windows for _, loss, _ in window.done]
    assert losses[0] == pytest.approx(math.log(tokenizer.vocab_size), abs=1.5)
    assert losses[-1] < losses[0] - 0.3
    assert side.close() == 0


def row(key: str, *speeds: float, size: str = "tiny", peak: float = 1000.0, **losses: Any) -> Row:
    """A row with windows of 100 tokens at the given speeds."""
    level, updates = losses.get("level", 6.0), losses.get("updates", ENOUGH)
    windows = [
        Window(
            tokens=100,
            seconds=100 / speed,
            done=[(100, 100 * level, 0.0)] * updates,
            peak_megabytes=peak,
            other_load=0.0,
            products=8.2e10,
        )
        for speed in speeds
    ]
    return Row(SIDES[key], size, {"parameters": 2e6, "version": "1", "threads": 2}, windows)


def test_losses_are_means_over_the_same_updates() -> None:
    done = [(10, 90.0, 80.0), (10, 70.0, 60.0), (20, 100.0, 80.0)]
    window = Window(tokens=40, seconds=1, done=done, peak_megabytes=1, other_load=0, products=1)
    read = Row(SIDES["lightconv-fp32"], "tiny", {}, [window])
    assert read.updates == 3
    assert read.mean_losses(0, 1) == (9.0, 8.0)
    assert read.mean_losses(0, 2) == pytest.approx((160 / 20, 140 / 20))
    assert read.mean_losses(1, 3) == pytest.approx((170 / 30, 140 / 30))
    lines = report.show_curves([read, read])
    assert lines[0] == "| tiny: loss / nll up to update | 1 | 2 | 3 |"
    assert lines[2] == lines[3] and lines[2].endswith("| 5.000 / 4.000 |")


def test_a_loss_apart_from_the_peer_s_is_refused() -> None:
    ours_is, peer = row("lightconv-bf16", 300), row("fairseq-lightconv", 100, level=6.1)
    lines, agree = judge_losses([ours_is, peer, row("fairseq-attention", 100, level=9.0)])
    assert agree and len(lines) == 1 and "0.100 apart, within 0.15" in lines[0]
    apart = row("lightconv-fp32", 300, level=6.3)
    lines, agree = judge_losses([ours_is, apart, peer])
    assert not agree and "0.200 apart, MORE THAN 0.15" in lines[1]
    short = row("lightconv-fp32", 300, level=6.3, updates=ENOUGH // 2)
    lines, agree = judge_losses([short, peer])
    assert agree and "within 0.6 (too few updates to tell more: 15)" in lines[0]
    assert judge_losses([row("dynamicconv-fp32", 300), peer]) == ([], True)


def test_targets_are_met_or_missed_beside_the_fastest_peer() -> None:
    rows = [
        row("lightconv-bf16", 249, 251, 290, peak=900),
        row("lightconv-fp32", 140, peak=1001),
        row("dynamicconv-bf16", 251),
        row("fairseq-dynamicconv", 50),
        row("fairseq-attention", 99, 100, 101),
        row("fairseq-attention-malloc", 150, peak=1500),
        row("marian", 900, size="small"),
    ]
    assert best_peer(rows, rows[0], malloc=False) is rows[4]
    lines = judge_targets(rows)
    assert lines[:6] == [
        "tiny lightconv bf16, 2.5x the best stock peer: met (2.51x fairseq Transformer fp32)",
        "tiny lightconv fp32, 1.5x the best stock peer: MISSED (1.40x fairseq Transformer fp32)",
        "tiny lightconv bf16, 1.7x the best peer with malloc settings: MISSED "
        "(1.67x fairseq Transformer fp32, malloc)",
        "tiny lightconv bf16, memory at most the best stock peer's: met "
        "(900 MB, fairseq Transformer fp32 1,000 MB)",
        "tiny lightconv fp32, memory at most the best stock peer's: MISSED "
        "(1,001 MB, fairseq Transformer fp32 1,000 MB)",
        "tiny dynamicconv bf16, 2.5x the best stock peer: met (2.51x fairseq Transformer fp32)",
    ]
    assert lines[6].endswith("not judged, our side did not run")
    assert judge_targets(rows[:1])[0].endswith("not judged, no stock peer ran")
    table = show_table(rows)
    assert table[2] == (
        "| ours LightConv | tiny | bf16 | 2 | 2.00 M | 251 | 290 | 2.51 | 1.67 | 900 | 0.00 | 82 |"
    )
    assert table[7].startswith("| fairseq Transformer, malloc | tiny | fp32 |")


def test_fp32_is_measured_against_peers_in_fp32_and_bf16_against_all() -> None:
    rows = [
        row("lightconv-bf16", 500),
        row("lightconv-fp32", 180),
        row("nn-transformer", 100),
        row("marian-bf16", 250),
    ]
    lines = judge_targets(rows)
    assert lines[0].endswith("MISSED (2.00x transformers Marian bf16)")
    assert lines[1].endswith("met (1.80x torch nn.Transformer fp32)")


def test_json_keeps_windows_and_verdicts(tmp_path: Path) -> None:
    rows = [row("lightconv-bf16", 300), row("fairseq-lightconv", 100, level=6.3)]
    path = tmp_path / "all.json"
    bench_train.write_json(argparse.Namespace(json=path, rounds=1), rows)
    kept = json.loads(path.read_text())
    assert kept["losses_agree"] is False and kept["arguments"]["rounds"] == "1"
    assert [each["speed"] for each in kept["rows"]] == pytest.approx([300, 100])
    assert kept["rows"][0]["windows"][0]["tokens"] == 100
    assert kept["targets"] == judge_targets(rows)
