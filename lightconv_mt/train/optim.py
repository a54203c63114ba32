"""Adam with decoupled weight decay, and gradient clipping."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightconv_mt.errors import ConfigError
from lightconv_mt.train.distributed import whole


@dataclass(kw_only=True)
class OptimConfig:
    """Adam; weight decay is decoupled (p <- p - weight_decay * lr * p), as in fairseq's Adam."""

    lr: float = 5e-4
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 0.0  # 0: no clipping

    def __post_init__(self) -> None:
        if not self.lr > 0.0:
            raise ConfigError(f"optim.lr is {self.lr}; give a positive learning rate")
        for key in ("beta1", "beta2"):
            if not 0.0 <= getattr(self, key) < 1.0:
                raise ConfigError(f"optim.{key} is {getattr(self, key)}; give a value in [0, 1)")
        for key in ("eps", "weight_decay", "clip_norm"):
            if not getattr(self, key) >= 0.0:
                raise ConfigError(f"optim.{key} is {getattr(self, key)}; give 0 or more")


def build_optimizer(
    config: OptimConfig, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """Fused AdamW over the parameters; the schedule sets its learning rate before every step."""
    optimizer = torch.optim.AdamW(
        list(parameters),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
    optimizer.register_step_post_hook(_count_change)
    return optimizer


def _count_change(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Raise the parameters' versions, which fused steps leave as they were: searches look there."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            torch.autograd.graph.increment_version(parameter)


def clip_gradients(parameters: Iterable[nn.Parameter], clip_norm: float) -> Tensor:
    """Scale all gradients so that their joint norm is at most clip_norm (0: leave them).

    Returns:
        The norm before scaling, float32 scalar.
    """
    parameters = list(parameters)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm(gradients, foreach=True))
    if clip_norm > 0.0:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm, foreach=True)
    return norm
