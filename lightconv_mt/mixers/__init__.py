"""Token mixers; every module of this folder is imported, so a new one needs no other line."""

from importlib import import_module
from pkgutil import iter_modules

from lightconv_mt.mixers.base import (
    MIXERS,
    MixerConfig,
    MixerSlot,
    MixerState,
    TokenMixer,
    register_mixer,
)

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["MIXERS", "MixerConfig", "MixerSlot", "MixerState", "TokenMixer", "register_mixer"]
