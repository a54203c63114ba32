"""Runs on a toy language that is learned in seconds, on the CPU and where there is one the GPU."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightconv_mt import training
from lightconv_mt.config import Device, RuntimeConfig, TrainRunConfig
from lightconv_mt.data.batching import BatchConfig
from lightconv_mt.data.corpus import CorpusConfig, SourceConfig, SourceFormat
from lightconv_mt.data.tokenizer import TokenizerConfig
from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.mixers import MIXERS
from lightconv_mt.model.transformer import ModelConfig
from lightconv_mt.train.checkpoint import CheckpointConfig, CheckpointStore
from lightconv_mt.train.config import LoopConfig
from lightconv_mt.train.optim import OptimConfig
from lightconv_mt.train.schedule import InverseSqrtConfig

WORDS = ["ba", "de", "fi", "go", "hu", "ka", "le", "mi", "no", "pu", "ra", "se", "ti", "vo", "zu"]


def write_corpus(folder: Path, name: str, count: int, seed: int) -> SourceConfig:
    """The target is the source backwards, each word with an ending."""
    generator = random.Random(seed)
    lines = [" ".join(generator.choices(WORDS, k=generator.randint(2, 6))) for _ in range(count)]
    (folder / f"{name}.src").write_text("".join(f"{line}\n" for line in lines))
    (folder / f"{name}.tgt").write_text(
        "".join(" ".join(f"{word}n" for word in reversed(line.split())) + "\n" for line in lines)
    )
    return SourceConfig(
        format=SourceFormat.text, src=str(folder / f"{name}.src"), tgt=str(folder / f"{name}.tgt")
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CorpusConfig:
    folder = tmp_path_factory.mktemp("data")
    return CorpusConfig(
        src_lang="xx",
        tgt_lang="yy",
        train={"toy": write_corpus(folder, "train", 3000, 1)},
        valid=write_corpus(folder, "valid", 40, 2),
        test=write_corpus(folder, "test", 50, 3),
        cache_dir=str(folder / "cache"),
    )


Configure = Callable[..., TrainRunConfig]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Device:
    return Device(request.param)


@pytest.fixture
def configure(data: CorpusConfig, tmp_path: Path, device: Device) -> Configure:
    def build(
        run: str = "run",
        *,
        mixer: str = "dynamicconv",
        steps: int = 6,
        train: Any = None,
        **values: Any,
    ) -> TrainRunConfig:
        mixer_values = (
            {}
            if mixer in ("attention", "average_attention")
            else {"encoder_kernel_sizes": [5], "decoder_kernel_sizes": [5]}
        )
        defaults: dict[str, Any] = {
            "run_dir": str(tmp_path / run),
            "data": data,
            "tokenizer": TokenizerConfig(vocab_size=300),
            "batch": BatchConfig(max_tokens=512, max_length=64),
            "model": ModelConfig(
                mixer=MIXERS[mixer](**mixer_values),
                dim=64,
                ffn_dim=128,
                num_heads=4,
                encoder_layers=2,
                decoder_layers=2,
                dropout=0.1,
            ),
            "optim": OptimConfig(lr=4e-3),
            "schedule": InverseSqrtConfig(warmup_steps=60),
            "train": LoopConfig(
                **{"validate_every_steps": 3, "log_every_steps": 2, **(train or {})},
                max_steps=steps,
            ),
            "checkpoint": CheckpointConfig(save_every_steps=1, keep_last=4, average_last=2),
            "decode": DecodeConfig(beam_size=1, max_length_extra=5),
            "runtime": RuntimeConfig(device=device, threads=1),
        }
        return TrainRunConfig(**{**defaults, **values})

    return build


def learn(config: TrainRunConfig) -> None:
    """Train so long that the language is learned."""
    config.train = LoopConfig(max_steps=400, validate_every_steps=200, log_every_steps=100)
    config.checkpoint = CheckpointConfig(save_every_steps=20, keep_last=4, average_last=4)
    assert training.train(config) == 0


def weights(config: TrainRunConfig) -> dict[str, torch.Tensor]:
    store = CheckpointStore(Path(config.run_dir), config.checkpoint)
    loaded = store.load_latest()
    assert loaded is not None
    averages = {f"ema.{name}": tensor for name, tensor in loaded.ema.items()}
    return {**loaded.model, **loaded.optimizer, **averages}
