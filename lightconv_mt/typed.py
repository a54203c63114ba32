"""Plain values to configuration objects and back, and the nearest valid key; needs no torch."""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from difflib import get_close_matches
from enum import Enum
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lightconv_mt.errors import ConfigError, suggest

Root = TypeVar("Root")

# Hydra group -> (base class, register): a field of the base class takes the class its `name` picks.
Registers = Mapping[str, tuple[type, Mapping[str, type]]]

_SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def build_typed(root: type[Root], plain: Any, *, registers: Registers) -> Root:
    """Build `root` from plain values, as `lightconv_mt.config.to_typed` says."""
    missing = list(_missing_keys(plain, ""))
    if missing:
        raise _no_value(missing)
    value: Root = _Builder(root, registers).build(root, plain, "")
    return value


def to_plain(config: Any) -> dict[str, Any]:
    """Dicts, lists and scalars of a configuration, Enums by name; `to_typed` is the way back."""
    return asdict(
        config, dict_factory=lambda items: {key: _plain_value(value) for key, value in items}
    )


def to_yaml(config: Any) -> str:
    """YAML text of a configuration object, in the order of its fields."""
    return OmegaConf.to_yaml(OmegaConf.create(to_plain(config)))


def read_yaml(path: Path) -> dict[str, Any]:
    """Plain values of a YAML file; tags and duplicate keys are refused, `${...}` stays text.

    Raises:
        ConfigError: when it cannot be read or holds no mapping.
    """
    try:
        plain = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException, RecursionError) as error:
        raise ConfigError(f"cannot be read as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(plain, dict):
        raise ConfigError("holds no keys")
    return {str(key): value for key, value in plain.items()}


def types_at(root: type, key: str, *, registers: Registers) -> list[Any]:
    """Types that a dotted key may have, one for each class of a register; none if it is unknown."""
    types: list[Any] = [root]
    for name in key.split(".") if key else []:
        types = [child for kind in types for child in _children(kind, name, registers)]
    return types


def expected(kind: Any, key: str) -> str:
    """What to give for a key of some type, as the end of an error message."""
    if get_origin(kind) in (Union, UnionType):
        return f"{expected(without_none(kind), key)}, or null"
    if get_origin(kind) is list:
        return f"a list in brackets, each item {expected(get_args(kind)[0], key)}"
    if is_dataclass(kind):
        return f"its keys one by one, such as {key}.{fields(kind)[0].name}=..."
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(kind.__members__)}"
    return _SCALARS.get(kind, "keys and values")


def nearest_key(root: type, key: str, *, registers: Registers) -> str | None:
    """The key probably meant by a wrong one: misspelt at its level, or right at another level."""
    valid = ""
    for name in key.split("."):
        names = _names_below(root, valid, registers)
        if name not in names and "NAME" not in names:
            close = get_close_matches(name, names, n=1, cutoff=0.7)
            close = close or [option for option in names if option.startswith(name)]
            if not close:
                return _elsewhere(root, key.rpartition(".")[2], registers)
            name = close[0]
        valid = f"{valid}.{name}" if valid else name
    return valid


def unknown_key(root: type, key: str, *, registers: Registers) -> ConfigError:
    """The error for a key that does not exist, or only for another choice of a group."""
    parent, _, name = key.rpartition(".")
    for base, register in registers.values():
        if base in map(without_none, types_at(root, parent, registers=registers)):
            owners = [choice for choice, kind in register.items() if name in get_type_hints(kind)]
            if owners:
                return ConfigError(
                    f"{parent} has no key {name} here; it belongs to {', '.join(owners)}"
                )
    nearest = nearest_key(root, key, registers=registers)
    if nearest == key:
        return ConfigError(f"{key} is not part of this configuration; to add it, write +{key}=...")
    if nearest is not None:
        return ConfigError(f"there is no key {key}; did you mean {nearest}?")
    names = ", ".join(sorted(_names_below(root, parent, registers)))
    return ConfigError(f"there is no key {key}; {parent or 'the top level'} has {names or 'none'}")


class _Builder:
    """Builds values by their annotated types; keys are dotted paths, for messages."""

    def __init__(self, root: type, registers: Registers) -> None:
        self.root, self.registers = root, registers

    def build(self, kind: Any, value: Any, key: str) -> Any:
        if get_origin(kind) in (Union, UnionType):
            return None if value is None else self.build(without_none(kind), value, key)
        if get_origin(kind) is list:
            if not isinstance(value, list):
                raise _mistyped(kind, value, key)
            item_kind = get_args(kind)[0]
            return [self.build(item_kind, item, f"{key}[{n}]") for n, item in enumerate(value)]
        if get_origin(kind) is dict or is_dataclass(kind):
            if not isinstance(value, dict):
                raise _mistyped(kind, value, key)
            if is_dataclass(kind):
                return self._build_object(self._choose(kind, value, key), value, key)
            item_kind = get_args(kind)[1]
            return {n: self.build(item_kind, item, f"{key}.{n}") for n, item in value.items()}
        if issubclass(kind, Enum):
            if str(value) not in kind.__members__:
                raise _mistyped(kind, value, key)
            return kind[str(value)]
        return _build_scalar(kind, value, key)

    def _build_object(self, kind: Any, values: dict[str, Any], key: str) -> Any:
        hints, prefix = get_type_hints(kind), f"{key}." if key else ""
        for name in values:
            if name not in hints:
                raise unknown_key(self.root, f"{prefix}{name}", registers=self.registers)
        required = [f.name for f in fields(kind) if f.default is f.default_factory is MISSING]
        missing = [prefix + name for name in required if name not in values]
        if missing:
            raise _no_value(missing)
        arguments = {n: self.build(hints[n], value, prefix + n) for n, value in values.items()}
        try:
            return kind(**arguments)
        except ConfigError as error:
            message = str(error)
            if not key or f"{key.partition('.')[0]}." in message:
                raise ConfigError(self._relocated(message, kind, key)) from error
            raise ConfigError(f"{key}: {message}") from error

    def _relocated(self, message: str, kind: Any, key: str) -> str:
        """A message about the key where a group is at home, about that where it stands instead."""
        for group, (base, _) in self.registers.items():
            if issubclass(kind, base):
                return message.replace(f"{group.replace('/', '.')}.", f"{key}.")
        return message

    def _choose(self, kind: Any, value: dict[str, Any], key: str) -> Any:
        for base, register in self.registers.values():
            if kind is base:
                name = str(value.get("name"))
                if name not in register:
                    raise ConfigError(f"{key}.name is {name!r}; {suggest(name, register)}")
                return register[name]
        return kind


def _build_scalar(kind: type, value: Any, key: str) -> Any:
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise _mistyped(kind, value, key)
    if isinstance(value, float) and not isfinite(value):
        raise ConfigError(f"{key} is {value}; give a finite number")
    return value


def _mistyped(kind: Any, value: Any, key: str) -> ConfigError:
    given = "null" if value is None else repr(value)
    return ConfigError(f"{key or 'the configuration'} is {given}; give {expected(kind, key)}")


def _no_value(keys: list[str]) -> ConfigError:
    return ConfigError(
        f"no value for {', '.join(keys)}; add {' '.join(f'{key}=...' for key in keys)}"
    )


def _missing_keys(plain: Any, key: str) -> Iterator[str]:
    if plain == "???":
        yield key
    elif isinstance(plain, dict):
        for name, value in plain.items():
            yield from _missing_keys(value, f"{key}.{name}" if key else str(name))


def _children(kind: Any, name: str, registers: Registers) -> list[Any]:
    """Annotations that `kind.name` may have."""
    kind = without_none(kind)
    if get_origin(kind) is dict:
        item = get_args(kind)[1]
        named = [
            register[name]
            for base, register in registers.values()
            if item is base and name in register
        ]
        return named or [item]
    hints = map(get_type_hints, _variants(kind, registers))
    return [hint[name] for hint in hints if name in hint]


def _names_below(root: type, key: str, registers: Registers) -> list[str]:
    """Keys directly below `key`; NAME stands for one that the user chooses."""
    names = []
    for kind in map(without_none, types_at(root, key, registers=registers)):
        names += ["NAME"] if get_origin(kind) is dict else []
        names += [field.name for cls in _variants(kind, registers) for field in fields(cls)]
    return list(dict.fromkeys(names))


def _all_keys(root: type, key: str, registers: Registers) -> Iterator[str]:
    """Every dotted key below `key`, inner nodes too."""
    for name in _names_below(root, key, registers):
        child = f"{key}.{name}" if key else name
        yield child
        yield from _all_keys(root, child, registers)


def _elsewhere(root: type, name: str, registers: Registers) -> str | None:
    """The shortest key whose last part is, or nearly is, `name`."""
    by_name: dict[str, str] = {}
    for key in sorted(_all_keys(root, "", registers), key=lambda key: (key.count("."), key)):
        by_name.setdefault(key.rpartition(".")[2], key)
    close = get_close_matches(name, by_name, n=1, cutoff=0.75)
    return by_name[close[0]] if close else None


def _variants(kind: Any, registers: Registers) -> list[Any]:
    """The dataclasses that a value of type `kind` may be; none for other types."""
    for base, register in registers.values():
        if kind is base:
            return list(register.values())
    return [kind] if is_dataclass(kind) else []


def without_none(kind: Any) -> Any:
    """X of `X | None`."""
    if get_origin(kind) not in (Union, UnionType):
        return kind
    (only,) = (option for option in get_args(kind) if option is not NoneType)
    return only


def _plain_value(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, list):
        return [_plain_value(item) for item in value]
    return value
