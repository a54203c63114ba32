"""A moving average of the weights, kept beside those that are trained."""

import torch
from torch import Tensor, nn

from lightconv_mt.train.checkpoint import load_model_tensors, model_tensors
from lightconv_mt.train.distributed import placed_as, share_of, whole


class MovingAverage:
    """Exponential moving average of a model's parameters; every process keeps its own.

    After each update average <- d * average + (1 - d) * parameter, d = `decay_at(step, decay)`,
    beginning with the parameters before the first one. Averages of a run's weights are those of
    Polyak & Juditsky (1992), and this one is Marian's (--exponential-smoothing 1 - decay).
    """

    def __init__(self, model: nn.Module, shown: nn.Module, *, decay: float) -> None:
        """Begin with the weights as they are.

        Args:
            model: that is trained; each process may hold a part of it.
            shown: another one with the same weights, whole in each process. It is what holds the
                average, unless processes hold parts of `model`: then it does after `show`.
            decay: in (0, 1).
        """
        self.decay, self.shown = decay, shown
        self._parameters = list(model.parameters())
        self._averages = self._parts_of_shown()

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters that the optimiser step of this number has left."""
        torch._foreach_lerp_(
            [share_of(average) for average in self._averages],
            [share_of(parameter) for parameter in self._parameters],
            1.0 - decay_at(step, self.decay),
        )

    @torch.no_grad()
    def show(self) -> nn.Module:
        """The model that holds the average; called by all processes."""
        for parameter, average in zip(self.shown.parameters(), self._averages, strict=True):
            found = whole(average)
            if found is not average:
                parameter.copy_(found)
        return self.shown

    def tensors(self) -> dict[str, Tensor]:
        """The average by name of the parameter, on the CPU; called by all processes."""
        return model_tensors(self.show())

    def load(self, tensors: dict[str, Tensor], *, source: object) -> None:
        """Restore what `tensors` gave.

        Raises:
            CheckpointError: when names or shapes differ.
        """
        load_model_tensors(self.shown, tensors, source=source)
        self._averages = self._parts_of_shown()

    def _parts_of_shown(self) -> list[Tensor]:
        """This process's part of every weight in `shown`: the weight itself where it has all."""
        return [
            placed_as(weight.detach(), parameter)
            for weight, parameter in zip(self.shown.parameters(), self._parameters, strict=True)
        ]


def decay_at(step: int, decay: float) -> float:
    """What the average keeps of itself at a step: min(decay, (1 + step) / (10 + step)).

    So it looks back a part of the steps made at most, not to where they began.
    """
    return min(decay, (1 + step) / (10 + step))
