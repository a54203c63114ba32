"""Hydra's command line in friendlier words: text is taken as it stands, errors become one line."""

import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationToMissingValueError,
    OmegaConfBaseException,
    ValidationError,
)
from yaml import YAMLError
from yaml.error import Mark, MarkedYAMLError

from lightconv_mt.errors import ConfigError, suggest
from lightconv_mt.overview import group_names, option_names
from lightconv_mt.typed import Registers, expected, types_at, unknown_key, without_none

_REFUSED = re.compile(
    r"(?:Could not override '|Error merging override )"
    r"[+~]*(?P<key>[^\s=']+)(?:=(?P<value>.*))?"
)
_ASSIGNMENT = re.compile(r"(?P<key>\+{0,2}[\w.]+)=(?P<value>.+)", re.DOTALL)

ADDED_SOURCES = "added/sources"  # what `take_sources` took, as a config that Hydra merges
_NEW_SOURCE = re.compile(
    r"(?:\+data\.(?P<train>train\.\w+)|\+{0,2}data\.test)(?:\.(?P<field>\w+)=|=(?=\{))"
)


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
    lists = [kind for kind in map(without_none, types) if get_origin(kind) is list]
    if value[0] != "[" and lists:
        texts = any(get_args(kind) == (str,) for kind in lists)
        return f"{key}=[{_quoted(value) if texts else value}]"
    return override


def bracket_values(override: str, root: type, *, registers: Registers) -> str:
    """Make each value of a sweep over a list a list: `run_dir=a,b` is `run_dir=[a],[b]`.

    Left alone: what has brackets, quotes or parentheses of its own, `null` and `${...}`.
    """
    match = _ASSIGNMENT.fullmatch(override)
    if match is None or match["value"] == "null" or set(match["value"]) & set("[]()'\"{}"):
        return override
    types = types_at(root, match["key"].lstrip("+"), registers=registers)
    if not any(get_origin(kind) is list for kind in map(without_none, types)):
        return override
    values = ",".join(f"[{value}]" for value in match["value"].split(","))
    return f"{match['key']}={values}"


def take_sources(overrides: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Take out the words that add a corpus or a test set.

    These are `+data.train.NAME.FIELD=VALUE`, `data.test.FIELD=VALUE`, and either with `={...}`.
    Hydra adds no element to a typed dictionary by its fields, nor fields to a null that might have
    them, but merges whole ones.

    Returns:
        The other words, and the values of `data`.

    Raises:
        ConfigError: when such a word cannot be read.
    """
    others: list[str] = []
    sources: dict[str, Any] = {}
    for word in overrides:
        match = _NEW_SOURCE.match(word)
        try:
            parsed = OverridesParser.create().parse_override(word) if match else None
        except HydraException as error:
            raise _explain_syntax(word) from error
        if match is None or parsed is None or parsed.is_sweep_override():
            others.append(word)
            continue
        place = sources
        for name in (match["train"] or "test").split("."):
            place = place.setdefault(name, {})
        value = parsed.value()
        if match["field"]:
            value = {match["field"]: value}
        assert isinstance(value, dict), word
        place.update(value)
    return others, sources


def explain(error: Exception, root: type, *, registers: Registers) -> ConfigError | None:
    """One line for what Hydra, OmegaConf or YAML refused; None when it is none of their errors."""
    match error:
        case ConfigError():
            return error
        case BrokenPipeError():
            return None
        case OverrideParseException():
            return _explain_syntax(error.override)
        case MissingConfigException(missing_cfg_file=str(file), options=[_, *_] as options):
            group, _, option = file.rpartition("/")
            if file.startswith("experiment/"):
                group, _, option = file.partition("/")
                options = [*{*options, *option_names([files("lightconv_mt.configs")], group)}]
            return ConfigError(f"there is no {group}={option}; {suggest(option, options)}")
        case MarkedYAMLError(problem_mark=Mark() as mark):
            return ConfigError(f"{mark.name}, line {mark.line + 1}: {error.problem}")
        case RecursionError():
            return ConfigError("a ${...} refers to itself; break the circle")
        case HydraException() | OmegaConfBaseException() | YAMLError() | OSError() | ValueError():
            explained = _explain_key(error, root, registers)
        case _:
            return None
    where = re.match(r"In '(?P<file>[^']+)'", str(error))
    named = where is None or where["file"] in str(explained) or where["file"] == ADDED_SOURCES
    if where and not named:
        return ConfigError(f"{where['file']}.yaml: {explained}")
    return explained


def _explain_syntax(override: str) -> ConfigError:
    key, equals, value = override.partition("=")
    if not equals:
        return ConfigError(f"{override!r} is not key=value; --help shows examples")
    if "${" in value:
        return ConfigError(f"{override!r} cannot be read; close every ${{...}}")
    return ConfigError(
        f'{override!r} cannot be read; quote twice, such as "{key}={_quoted(value)}"'
    )


def _explain_key(error: Exception, root: type, registers: Registers) -> ConfigError:
    several = re.search(r"Ambiguous value for argument '(?P<key>[^=]+)=", str(error))
    if several:
        return ConfigError(f"{several['key']} has several values; give one, or add --multirun")
    unchosen = re.search(r"You must specify '(?P<group>[^']+)'", str(error))
    if unchosen:
        group = unchosen["group"]
        options = ", ".join(option_names([files("lightconv_mt.configs")], group))
        return ConfigError(f"no {group} is chosen; give {group}=NAME, one of {options}")
    word = _REFUSED.search(str(error))
    cause = next(
        (e for e in _chain(error) if isinstance(e, OmegaConfBaseException) and e.msg), None
    )
    if cause is None and word:
        groups = [*group_names(files("lightconv_mt.configs"))]
        if word["key"] in groups:
            return ConfigError(
                f"{word['key']} cannot be chosen here; --help lists the groups of this command"
            )
        return ConfigError(
            f"there is no config group {word['key']}; {suggest(word['key'], groups)}"
        )
    if cause is None:
        return ConfigError(_first_line(error))
    key = word["key"] if word else str(cause.full_key or "")
    types = types_at(root, key, registers=registers) if key else []
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and not key.startswith("hydra"):
        return unknown_key(root, key, registers=registers)
    if isinstance(cause, InterpolationToMissingValueError):
        return ConfigError(f"{key}: {_first_line(cause)}; give that key a value")
    if "deletion" in str(cause.msg):
        return ConfigError(f"{key} cannot be removed; give it another value")
    if isinstance(cause, ValidationError) and types:
        quoted = re.search(r"[Vv]alue '(?P<value>[^']*)'", str(cause.msg))
        given = word["value"] if word else quoted["value"] if quoted else "mistyped"
        return ConfigError(f"{key} is {given!r}; give {expected(types[0], key)}")
    return ConfigError(f"{key}: {_first_line(cause)}" if key else _first_line(cause))


def _quoted(value: str) -> str:
    """In single quotes; backslashes are doubled only before a quote, as Hydra reads them."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".:") or type(error).__name__
