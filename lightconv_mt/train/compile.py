"""Compiles the layers of a model for training, once, for batches of any shape."""

import logging
import time
from collections.abc import Callable

import torch
from torch import nn

from lightconv_mt.data.batching import Batch
from lightconv_mt.errors import ConfigError
from lightconv_mt.model.transformer import Seq2SeqTransformer
from lightconv_mt.ops.dispatch import COMPILED

# Sentences, source and target tokens of the batch that is compiled for: no two are equal, or the
# compiler would take them for one number.
EXAMPLE = (62, 31, 33)

logger = logging.getLogger(__name__)


def compile_layers(model: Seq2SeqTransformer, first_step: Callable[[], object]) -> None:
    """Have encoder and decoder layers compiled by torch, while `first_step` trains on a batch.

    What is compiled then serves all later batches; what it does not fit (a single sentence or
    word, evaluation) runs as without. So what a batch computes does not depend on those before
    it, and a run resumes to the bit. Random numbers are those of a model that is not compiled.

    Args:
        model: on its device; its parameters and their names stay as they are.
        first_step: runs the model forward and backward as training does, on a batch that does
            not depend on where training stands.

    Raises:
        ConfigError: when kernels are plain torch: its compiler cannot build their masks on CPUs.
    """
    if model.backend not in COMPILED:
        raise ConfigError(
            f"runtime.compile=true needs compiled kernels, and runtime.kernels is "
            f"{model.backend.name} here; set runtime.compile=false, or runtime.kernels=native or "
            f"triton"
        )
    import torch._dynamo

    layers: list[nn.Module] = [*model.encoder.layers, *model.decoder.layers]
    settings = torch._dynamo.config
    settings.capture_scalar_outputs = True  # seeds of dropout are drawn inside of layers
    settings.recompile_limit = max(settings.recompile_limit, 2 * len(layers))
    for layer in layers:
        layer.compile(dynamic=True, options={"fallback_random": True})
    logger.info("compiling %d layers; this takes minutes before the first step", len(layers))
    started = time.perf_counter()
    with torch.compiler.set_stance("default"):
        first_step()
    torch.compiler.set_stance("eager_on_recompile")
    logger.info("compiled in %.0f s", time.perf_counter() - started)


def example_batch(device: torch.device, shape: tuple[int, int, int] = EXAMPLE) -> Batch:
    """A batch without padding, whose words do not matter; sentences, source and target tokens."""
    sentences, source, target = shape
    src, tgt = (torch.ones(sentences, length, dtype=torch.int64) for length in (source, target))
    batch = Batch(src, src > 0, tgt, tgt, tgt > 0, tgt.numel(), [])
    return batch.to(device)
