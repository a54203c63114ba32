"""Counted costs are those that the mixers' docstrings give as formulas."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mixer_costs
from lightconv_mt.mixers import MIXERS

README = Path(mixer_costs.__file__).parents[1] / "README.md"
C, F, H, K, T = 32, 48, 4, 5, 9
SIZE = mixer_costs.Size(dim=C, ffn_dim=F, num_heads=H)
M, S = 3, C // 2  # kernels and squeezed channels
NARROW = {"encoder_kernel_sizes": [K], "decoder_kernel_sizes": [K]}
PLAIN = {**NARROW, **mixer_costs.NO_GLU}
BLOCK, GATED = (2 * C * C + 2 * C, 2 * C * C), (3 * C * C + 3 * C, 3 * C * C)
Both = tuple[float, float]


def beside(block: tuple[int, int], parameters: int, encoder: float, decoder: float) -> Any:
    return block[0] + parameters, (block[1] + encoder, block[1] + decoder)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("attention", {}, (4 * C * C + 4 * C, (4 * C * C + 2 * T * C + 2 * C,) * 2)),
        ("conv", NARROW, (K * C * C + C, (K * C * C,) * 2)),
        ("depthwise", PLAIN, beside(BLOCK, C * K, C * K, C * K)),
        ("depthwise", {**PLAIN, "num_heads": 2}, beside(BLOCK, 2 * K, C * K, C * K)),
        ("lightconv", PLAIN, beside(BLOCK, H * K, C * K, C * K)),
        ("lightconv", NARROW, beside(GATED, H * K, C * K, C * K)),
        ("dynamicconv", PLAIN, beside(BLOCK, C * H * K, *[C * H * K + C * K] * 2)),
        (
            "average_attention",
            {},
            (
                2 * C * F + 4 * C * C + F + 3 * C,
                (2 * C * F / T + 4 * C * C + 2 * C, 2 * C * F + 4 * C * C + 2 * C),
            ),
        ),
        (
            "kernel_attention",
            {**PLAIN, "num_kernels": M, "reduction": 2},
            beside(
                BLOCK,
                M * H * K + C * S + S + S * M + M,
                (C * S + S * M + M * H * K) / T + C * K,
                C * S + S * M + M * H * K + C * K,
            ),
        ),
    ],
)
def test_counts_are_the_formulas(
    name: str, values: dict[str, Any], expected: tuple[int, Both]
) -> None:
    for causal in (False, True):
        cost = mixer_costs.count_cost(name, values, SIZE, causal=causal, length=T)
        assert cost.parameters == expected[0]
        assert cost.multiply_adds == pytest.approx(expected[1][causal])


def test_a_window_costs_the_same_however_long_the_sentence_is() -> None:
    values = {"encoder_windows": [7], "decoder_windows": [7]}
    costs: Callable[..., Any] = mixer_costs.count_cost
    for causal in (False, True):
        short, long = (
            costs("attention", values, SIZE, causal=causal, length=length).multiply_adds
            for length in (320, 3200)
        )
        assert short == long
        # The scale is multiplied into queries and keys, and keys are in more than one block.
        assert 0 <= long - (4 * C * C + 2 * (32 + 7 - 1) * C) <= 3 * C


def test_the_table_has_every_mixer_and_is_the_readme_s(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mixer_costs.py"])
    mixer_costs.main()
    lines = capsys.readouterr().out.splitlines()
    names = [line.split("|")[1].strip(" `") for line in lines[2:]]
    assert set(names) == set(MIXERS)
    assert len(names) == len(mixer_costs.ROWS)
    assert set(lines) <= set(README.read_text().splitlines())
