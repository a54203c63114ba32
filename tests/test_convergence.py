"""One training run on two backends: the same seed gives the same loss curve."""

import pytest
import torch

from lightconv_mt.mixers import MIXERS
from lightconv_mt.mixers.conv_block import ConvBlockConfig
from lightconv_mt.model.transformer import ModelConfig, Seq2SeqTransformer
from lightconv_mt.ops import Backend
from lightconv_mt.train.loss import LabelSmoothedLoss

VOCABULARY, PAD, BOS, EOS, FIRST_WORD = 40, 1, 2, 3, 4
STEPS = 150


def losses(mixer: str, backend: Backend, device: str, *, steps: int = STEPS) -> torch.Tensor:
    """Mean loss of a target token at every step, on sentences to be turned around."""
    torch.manual_seed(5)
    mixer_config = MIXERS[mixer]()
    assert isinstance(mixer_config, ConvBlockConfig)
    mixer_config.encoder_kernel_sizes = mixer_config.decoder_kernel_sizes = [3, 7]
    mixer_config.weight_dropout = 0.1
    config = ModelConfig(
        mixer=mixer_config,
        **{"dim": 64, "ffn_dim": 128, "num_heads": 4, "dropout": 0.1},
        **{"encoder_layers": 2, "decoder_layers": 2},
    )
    model = Seq2SeqTransformer(
        config,
        **{"src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY},
        **{"src_pad_id": PAD, "tgt_pad_id": PAD},
        backend=backend,
    ).to(device)
    loss_function = LabelSmoothedLoss(0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    curve = []
    for _ in range(steps):
        words = torch.randint(FIRST_WORD, VOCABULARY, (32, 12)).to(device)
        ends = [words.new_full((32, 1), token) for token in (BOS, EOS)]
        src, tgt = torch.cat([words, ends[1]], 1), torch.cat([words.flip(1), ends[1]], 1)
        mask = torch.ones_like(src, dtype=torch.bool)
        hidden = model(src, mask, torch.cat([ends[0], words.flip(1)], 1), mask)
        loss = loss_function(hidden, model.output_weight, tgt, mask).loss / tgt.numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.detach().cpu())
    return torch.stack(curve)


def check(curve: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(curve[:10], expected[:10], rtol=1e-4, atol=0)
    # Rounding grows from step to step, the course of training does not change.
    ours, other = (each[-20:].mean() for each in (curve, expected))
    torch.testing.assert_close(ours, other, rtol=0.05, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("mixer", ["lightconv", "dynamicconv"])
def test_triton_learns_as_the_reference_does(mixer: str) -> None:
    curve, expected = (
        losses(mixer, backend, "cuda") for backend in (Backend.triton, Backend.reference)
    )
    check(curve, expected)
    assert curve[-20:].mean() < curve[:10].mean() - 0.5


@pytest.mark.parametrize("mixer", ["lightconv", "dynamicconv"])
def test_what_runs_here_learns_as_the_reference_does(mixer: str) -> None:
    curve, expected = (
        losses(mixer, backend, "cpu", steps=12) for backend in (Backend.auto, Backend.reference)
    )
    check(curve, expected)
