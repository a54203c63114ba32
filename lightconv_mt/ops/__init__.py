"""Pure tensor functions: the two convolutions, whole sequences and single steps."""

from lightconv_mt.ops.dispatch import (
    Backend,
    dynamicconv,
    dynamicconv_step,
    lightconv,
    lightconv_step,
    resolve_backend,
)
from lightconv_mt.ops.reference import mask_outside_taps

__all__ = [
    "Backend",
    "dynamicconv",
    "dynamicconv_step",
    "lightconv",
    "lightconv_step",
    "mask_outside_taps",
    "resolve_backend",
]
