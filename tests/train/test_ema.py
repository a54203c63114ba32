"""The moving average against its formula, and what it is the average of."""

import copy

import pytest
import torch
from torch import nn

from lightconv_mt.errors import CheckpointError
from lightconv_mt.train.ema import MovingAverage, decay_at


class Tied(nn.Module):
    """One weight under two names, another of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(3, 4, bias=False), nn.Linear(3, 4)
        self.out.weight = self.into.weight


def pair() -> tuple[Tied, Tied]:
    model, shown = Tied(), Tied()
    shown.load_state_dict(model.state_dict())
    return model, shown


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.999])
def test_it_is_the_formula_in_float64(decay: float) -> None:
    model, shown = pair()
    average = MovingAverage(model, shown, decay=decay)
    names = [name for name, _ in model.named_parameters()]
    assert names == ["into.weight", "out.bias"]
    expected = [parameter.detach().double() for parameter in model.parameters()]
    for step in range(1, 40):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        average.update(step)
        kept = (1 + step) / (10 + step)
        kept = kept if kept < decay else decay
        expected = [
            kept * each + (1 - kept) * parameter.detach().double()
            for each, parameter in zip(expected, model.parameters(), strict=True)
        ]
        found = average.tensors()
        assert list(found) == names
        for ours, theirs in zip(found.values(), expected, strict=True):
            assert ours.dtype is torch.float32
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=2e-6)
    # What shows it is that model, with its weights still tied.
    assert average.show() is shown
    assert shown.into.weight is shown.out.weight
    assert torch.equal(shown.out.weight, found["into.weight"])


def test_the_decay_rises_to_what_is_asked_for() -> None:
    found = [decay_at(step, 0.9) for step in range(1, 201)]
    assert found[0] == pytest.approx(2 / 11)
    assert found == sorted(found)
    assert found[79] == pytest.approx(0.9)
    assert set(found[80:]) == {0.9}


def test_an_update_is_seen_in_the_version_of_what_is_shown() -> None:
    """Searches that packed the weights look there."""
    model, shown = pair()
    average = MovingAverage(model, shown, decay=0.5)
    before = [parameter._version for parameter in shown.parameters()]
    average.update(1)
    assert all(
        parameter._version > version
        for parameter, version in zip(shown.parameters(), before, strict=True)
    )


def test_it_goes_on_exactly_from_what_was_saved() -> None:
    straight = pair()
    stopped = copy.deepcopy(straight)
    first, second = (MovingAverage(*models, decay=0.9) for models in (straight, stopped))

    def go_on(model: Tied, average: MovingAverage, steps: range) -> None:
        for step in steps:
            nn.init.constant_(model.into.weight, 1.0 / step)
            average.update(step)

    go_on(straight[0], first, range(1, 8))
    saved = {name: tensor.clone() for name, tensor in first.tensors().items()}
    go_on(straight[0], first, range(8, 12))
    second.load(saved, source="x")
    go_on(stopped[0], second, range(8, 12))
    ours, theirs = first.tensors(), second.tensors()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(CheckpointError, match=r"x does not fit the model: 2 parameters are missin"):
        second.load({}, source="x")
