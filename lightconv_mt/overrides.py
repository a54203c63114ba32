"""Hydra's command line in friendlier words: text is taken as it stands, errors become one line."""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import get_args, get_origin

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    OmegaConfBaseException,
    ValidationError,
)
from yaml import YAMLError
from yaml.error import MarkedYAMLError

from lightconv_mt.errors import ConfigError, LcmtError
from lightconv_mt.typed import Registers, expected, types_at, unknown_key

_ASSIGNMENT = re.compile(r"(?P<key>\+{0,2}[\w.]+)=(?P<value>.+)", re.DOTALL)


def quote_text(override: str, root: type, *, registers: Registers) -> str:
    """Quote the value of a text key, so that paths may hold `=`, `,` and brackets.

    Lists may be given without brackets: `metrics=bleu,chrf`; in a list of texts, the value is then
    the only element. Left alone: quoted values, `null`, `???`, and `${...}`.
    """
    match = _ASSIGNMENT.fullmatch(override)
    if (
        match is None
        or match["value"][0] in "'\""
        or match["value"] in ("null", "???")
        or "${" in match["value"]
    ):
        return override
    key, value = match["key"], match["value"]
    types = types_at(root, key.lstrip("+"), registers=registers)
    if str in types or str | None in types:
        return f"{key}={_quoted(value)}"
    if value[0] != "[" and any(get_origin(kind) is list for kind in types):
        texts = any(get_args(kind) == (str,) for kind in types)
        return f"{key}=[{_quoted(value) if texts else value}]"
    return override


def explain(error: Exception, root: type, *, registers: Registers) -> ConfigError | None:
    """One line for what Hydra, OmegaConf or YAML refused; None when it is none of their errors."""
    if isinstance(error, LcmtError):
        return error if isinstance(error, ConfigError) else None
    if isinstance(error, OverrideParseException):
        return _explain_syntax(error.override)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return ConfigError(f"there is no {group}={option}; {_choice(option, list(error.options))}")
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return ConfigError(f"{mark.name}, line {mark.line + 1}: {error.problem}")
    if isinstance(error, RecursionError):
        return ConfigError("a ${...} refers to itself; break the circle")
    if not isinstance(
        error, HydraException | OmegaConfBaseException | YAMLError | OSError | ValueError
    ):
        return None
    where = re.match(r"In '(?P<file>[^']+)'", str(error))
    explained = _explain_key(error, root, registers) or ConfigError(_first_line(error))
    return (
        ConfigError(f"{where['file']}.yaml: {explained}")
        if where and where["file"] not in str(explained)
        else explained
    )


def _explain_syntax(override: str) -> ConfigError:
    key, equals, value = override.partition("=")
    if not equals:
        return ConfigError(f"{override!r} is not key=value; --help shows examples")
    if "${" in value:
        return ConfigError(f"{override!r} cannot be read; close every ${{...}}")
    return ConfigError(
        f'{override!r} cannot be read; quote twice, such as "{key}={_quoted(value)}"'
    )


def _explain_key(error: Exception, root: type, registers: Registers) -> ConfigError | None:
    message = str(error)
    refused = re.search(
        r"(?:Could not override '(?P<key>[^']+)'|Error merging override (?P<text>.+)|"
        r"Ambiguous value for argument '(?P<several>[^'=]+)=)",
        message,
    )
    if refused and refused["several"]:
        return ConfigError(
            f"{refused['several']} has several values; give one, or add --multirun to run each"
        )
    cause = next(
        (e for e in _chain(error) if isinstance(e, OmegaConfBaseException) and e.msg), None
    )
    key, equals, value = (
        (refused["key"] or refused["text"] if refused else "").lstrip("+~").partition("=")
    )
    if refused and ("/" in key or "@" in key or cause is None):
        groups = list(_groups(files("lightconv_mt.configs"), ""))
        return ConfigError(f"there is no config group {key}; {_choice(key, groups)}")
    if cause is None:
        return None
    key = key or str(cause.full_key or "")
    if not key or key.startswith("hydra"):
        return ConfigError(f"{key}: {_first_line(cause)}" if key else _first_line(cause))
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        return unknown_key(root, key, registers=registers)
    if "deletion" in str(cause.msg):
        return ConfigError(f"{key} cannot be removed; give it another value")
    types = types_at(root, key, registers=registers)
    if isinstance(cause, ValidationError) and types:
        quoted = re.search(r"[Vv]alue '(?P<value>[^']*)'", str(cause.msg))
        given = repr(value) if equals else repr(quoted["value"]) if quoted else "wrong"
        return ConfigError(f"{key} is {given}; give {expected(types[0], key)}")
    return ConfigError(f"{key}: {_first_line(cause)}")


def _quoted(value: str) -> str:
    """In single quotes; backslashes are doubled only before a quote, as Hydra reads them."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"


def _choice(given: str, options: list[str]) -> str:
    close = get_close_matches(given, options, n=1)
    return f"did you mean {close[0]}?" if close else f"choose one of {', '.join(options)}"


def _groups(folder: Traversable, name: str) -> Iterator[str]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir() and not entry.name.startswith("_"):
            yield name + entry.name
            yield from _groups(entry, f"{name}{entry.name}/")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".:") or type(error).__name__
