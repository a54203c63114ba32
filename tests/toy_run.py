"""A run folder of a small untrained model, made in no time."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from lightconv_mt.assemble import build_model
from lightconv_mt.config import Device, RuntimeConfig, TrainRunConfig
from lightconv_mt.data.batching import BatchConfig
from lightconv_mt.data.corpus import CorpusConfig, SourceConfig, SourceFormat
from lightconv_mt.data.tokenizer import TokenizerConfig, train_tokenizer
from lightconv_mt.data.tokenizer_pair import TokenizerPair
from lightconv_mt.decode.config import DecodeConfig
from lightconv_mt.mixers import MIXERS
from lightconv_mt.model.transformer import ModelConfig, Tying
from lightconv_mt.ops import Backend
from lightconv_mt.train.checkpoint import CheckpointConfig, model_tensors
from lightconv_mt.train.config import LoopConfig
from lightconv_mt.train.optim import OptimConfig
from lightconv_mt.train.schedule import InverseSqrtConfig
from lightconv_mt.train.storage import write_folder
from lightconv_mt.typed import to_yaml

WORDS = ["ba", "de", "fi", "go", "hu", "ka", "le", "mi", "no", "pu", "ra", "se", "ti", "vo", "zu"]


def write_toy_run(
    folder: Path,
    *,
    mixer: str = "lightconv",
    truncate_source: int | None = None,
    **model: Any,
) -> Path:
    """Write a run whose outputs vary with their source; returns its folder."""
    folder.mkdir(parents=True)
    sides = SourceConfig(format=SourceFormat.text, src="none.src", tgt="none.tgt")
    widths = {"encoder_kernel_sizes": [3], "decoder_kernel_sizes": [5]}
    sizes = {"dim": 16, "ffn_dim": 16, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 1}
    config = TrainRunConfig(
        run_dir=str(folder),
        data=CorpusConfig(src_lang="xx", tgt_lang="yy", train={"toy": sides}, valid=sides),
        tokenizer=TokenizerConfig(vocab_size=300),
        batch=BatchConfig(truncate_source=truncate_source),
        model=ModelConfig(
            mixer=MIXERS[mixer](**(widths if hasattr(MIXERS[mixer], "kernel_sizes") else {})),
            **{**sizes, "tying": Tying.none, **model},
        ),
        optim=OptimConfig(),
        schedule=InverseSqrtConfig(),
        train=LoopConfig(max_steps=1),
        checkpoint=CheckpointConfig(),
        decode=DecodeConfig(),
        runtime=RuntimeConfig(device=Device.cpu, kernels=Backend.torch),
    )
    (folder / "config.yaml").write_text(to_yaml(config))
    both = train_tokenizer(config.tokenizer, [f"{a} {b}" for a in WORDS for b in WORDS])
    tokenizers = TokenizerPair(both, both)
    tokenizers.save(folder)
    torch.manual_seed(3)
    built = build_model(config.model, tokenizers, config.runtime)
    nn.init.normal_(built.output_weight)
    tensors = model_tensors(built)
    write_folder(
        folder / "average",
        {"model.safetensors": partial(save_file, tensors)},
        size=0,
    )
    return folder
