"""Compiled layers compute what they do without, for batches of every shape."""

import copy
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from cpp_kernels import need_library
from torch import Tensor

from lightconv_mt.data.batching import Batch, collate
from lightconv_mt.data.tokenizer import TRAINED_IDS
from lightconv_mt.errors import ConfigError
from lightconv_mt.mixers import MIXERS
from lightconv_mt.model.transformer import ModelConfig, Seq2SeqTransformer
from lightconv_mt.ops.dispatch import Backend
from lightconv_mt.train.compile import EXAMPLE, compile_layers, example_batch
from lightconv_mt.train.loss import LabelSmoothedLoss, Objective

VOCAB = 20


@pytest.fixture(autouse=True)
def nothing_stays_compiled() -> Iterator[None]:
    import torch._dynamo

    settings = torch._dynamo.config
    before = settings.capture_scalar_outputs, settings.recompile_limit
    yield
    torch.compiler.set_stance("default")
    torch._dynamo.reset()
    settings.capture_scalar_outputs, settings.recompile_limit = before


def model(mixer: str, backend: Backend = Backend.native) -> Seq2SeqTransformer:
    options = {} if mixer == "attention" else {"weight_dropout": 0.1}
    widths = {"encoder_kernel_sizes": [3], "decoder_kernel_sizes": [3]} if options else {}
    return Seq2SeqTransformer(
        ModelConfig(
            mixer=MIXERS[mixer](**options, **widths),
            dim=16,
            ffn_dim=16,
            num_heads=2,
            encoder_layers=1,
            decoder_layers=1,
            dropout=0.1,
        ),
        src_vocab_size=VOCAB,
        tgt_vocab_size=VOCAB,
        src_pad_id=TRAINED_IDS.pad,
        tgt_pad_id=TRAINED_IDS.pad,
        backend=backend,
    )


def batch(sentences: int, source: int, target: int) -> Batch:
    def words(count: int) -> list[int]:
        return [*torch.randint(4, VOCAB, (count - 1,)).tolist(), TRAINED_IDS.eos]

    rows = [(words(source), words(target - place % 2)) for place in range(sentences)]
    return collate(rows, TRAINED_IDS, TRAINED_IDS)


def step(of: Seq2SeqTransformer, read: Batch) -> list[Tensor]:
    """Loss and gradients; dropout has the same seed every time."""
    torch.manual_seed(5)
    loss = Objective(of, LabelSmoothedLoss(0.1)).train()(read).loss
    return [loss.detach(), *torch.autograd.grad(loss, list(of.parameters()))]


@pytest.mark.timeout(900)
def test_a_model_compiled_once_serves_every_shape_with_the_same_dropout(thorough: bool) -> None:
    if not thorough:
        pytest.skip("compiling takes half a minute of a core; --thorough runs it")
    need_library()
    import torch._dynamo.utils as counts

    for mixer in ("lightconv", "dynamicconv", "attention"):
        torch._dynamo.reset()
        compiled = model(mixer)
        plain = copy.deepcopy(compiled)
        example = example_batch(torch.device("cpu"))
        compile_layers(compiled, partial(step, compiled, example))
        graphs = counts.counters["stats"]["unique_graphs"]
        assert not counts.counters["graph_break"]
        for shape in ((4, 5, 7), (5, 8, 8), (3, 3, 3), (1, 5, 6), (2, 16, 2)):
            read = batch(*shape)
            for ours, theirs in zip(step(compiled, read), step(plain, read), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        assert counts.counters["stats"]["unique_graphs"] == graphs
        assert list(compiled.state_dict()) == list(plain.state_dict())


def test_the_batch_that_is_compiled_for_ties_no_sizes() -> None:
    found = example_batch(torch.device("cpu"))
    assert (*found.src.shape, found.tgt_in.shape[1]) == EXAMPLE
    assert len({*EXAMPLE, 1}) == 4
    assert found.num_tokens == int(found.tgt_mask.sum())


def test_settings_that_cannot_be_together_are_refused() -> None:
    from lightconv_mt.config import RuntimeConfig
    from lightconv_mt.train.distributed import Parallel

    plain = model("lightconv", Backend.torch)
    with pytest.raises(ConfigError, match=r"needs compiled kernels, and runtime\.kernels is torch"):
        compile_layers(plain, lambda: None)
    with pytest.raises(ConfigError, match=r"runtime\.compile=true is for whole models.*ddp"):
        RuntimeConfig(compile=True, parallel=Parallel.fsdp)
