"""From the words of a command line to configurations: Hydra, told the schemas and kept quiet."""

import hashlib
import os
import re
import sys
from argparse import ArgumentError, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from lightconv_mt.errors import ConfigError, suggest
from lightconv_mt.overrides import ADDED_SOURCES, bracket_values, explain, quote_text, take_sources
from lightconv_mt.overview import help_text
from lightconv_mt.start_from import inherit
from lightconv_mt.typed import Registers

Plain = dict[str, Any]


def compose(command: str, arguments: list[str], *, root: type, registers: Registers) -> list[Plain]:
    """Compose what a command line describes.

    Args:
        command: name of the primary config.
        arguments: words after the command's name.
        root: schema of the primary config.
        registers: see `typed.Registers`.

    Returns:
        Plain values of each run: one, several with --multirun, and none when the arguments only
        asked for something to be printed, such as --help.

    Raises:
        ConfigError: on anything in the arguments or files that cannot be composed.
    """
    options = _parse_options(arguments)
    if options.help:
        sys.stdout.write(help_text(command, config_dir=options.config_dir))
        return []
    # In a sweep, commas separate values.
    shape = bracket_values if options.multirun else quote_text
    overrides = [shape(word, root, registers=registers) for word in options.overrides]
    words, sources = take_sources(overrides)
    if sources:
        added = {"data": sources}
        group, name = ADDED_SOURCES.split("/")
        ConfigStore.instance().store(name, added, group=group, package="_global_")
        words.append(f"+{group}={name}")
    # Hydra reads no override that follows an option.
    arguments = [*words, *_without(arguments, options.overrides)]
    register_schemas({command: root}, registers=registers)
    composed: list[tuple[DictConfig, str, list[str]]] = []

    def collect(config: DictConfig) -> None:
        hydra_config = HydraConfig.get()
        words = list(hydra_config.overrides.task)
        composed.append((config, hydra_config.job.override_dirname, words))

    decorate = hydra.main(
        version_base="1.3", config_path="pkg://lightconv_mt.configs", config_name=command
    )
    try:
        with _hydra_surroundings(arguments, multirun=options.multirun):
            decorate(collect)()
        configs = [_plain_values(config) for config, _, _ in composed]
        for config in configs if command == "train" else []:
            if not config["start_from"]:  # which brings its own
                _keep_used_mixers(config["model"], overrides)
    except Exception as error:
        explained = explain(error, root, registers=registers)
        if explained is None:
            raise
        raise explained from error
    if options.multirun and command == "train":  # a folder of its own for each run of the sweep
        for config, (_, name, _) in zip(configs, composed, strict=True):
            config["run_dir"] = os.path.join(config["run_dir"], _folder_name(name))
    for config, (_, _, words) in zip(configs, composed, strict=True):
        inherit(config, words)
    return configs


def _folder_name(words: str) -> str:
    """Overrides as the name of a folder; a file system takes 255 bytes of it."""
    name = words.replace("/", "_").encode()
    if len(name) > 255:
        end = f"...{hashlib.sha256(name).hexdigest()[:12]}".encode()
        name = name[: 255 - len(end)] + end
    return name.decode(errors="ignore")


def register_schemas(roots: dict[str, type], *, registers: Registers) -> None:
    """Tell Hydra the classes that type the YAML files.

    `NAME_schema` types the primary config NAME, and `GROUP/schema/OPTION` an option that has a
    class of its own.
    """
    store = ConfigStore.instance()
    for name, root in roots.items():
        store.store(name=f"{name}_schema", node=root)
    for group, (_, register) in registers.items():
        for option, kind in register.items():
            store.store(group=f"{group}/schema", name=option, node=kind)
    _, mixers = registers["model/mixer"]
    values = [{f"optional model/mixer@model.mixers.{name}": name} for name in mixers]
    store.store(name="every_mixer", node={"defaults": values})
    OmegaConf.register_new_resolver("per_layer", per_layer, replace=True)


def per_layer(values: list[int], num_layers: int) -> list[int]:
    """Resolve `${per_layer:[3,7,15,31],N}`: N values, the last one repeated if there are fewer."""
    return [values[min(layer, len(values) - 1)] for layer in range(num_layers)]


def _plain_values(config: DictConfig) -> Plain:
    plain = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    assert isinstance(plain, dict), type(plain)
    return {str(key): value for key, value in plain.items()}


def _keep_used_mixers(model: Plain, overrides: list[str]) -> None:
    """Leave in `model.mixers`, where every mixer's values are, those that a mixed stack names.

    Raises:
        ConfigError: when there is no such mixer, or an override gives values to one not in use.
    """
    used = set()
    for side in ("encoder", "decoder"):
        own = (model[f"{side}_mixer"] or model["mixer"])["name"]
        for name in model[f"{side}_mixers"] or ():
            if name not in {own, *model["mixers"]}:
                known = suggest(name, {own, *model["mixers"]})
                raise ConfigError(f"model.{side}_mixers has {name!r}; {known}")
            used |= {name} - {own}
    model["mixers"] = {name: each for name, each in model["mixers"].items() if name in used}
    for word in overrides:
        match = re.match(r"\+{0,2}(?:model/mixer@)?model\.mixers\.(\w+)", word)
        if match and match[1] not in used:
            raise ConfigError(
                f"model.mixers.{match[1]} is not in use; name {match[1]} in "
                f"model.encoder_mixers or model.decoder_mixers, or change model.mixer"
            )


def _parse_options(arguments: list[str]) -> Namespace:
    """Read the options that begin with a dash; unknown ones are refused."""
    parser = get_args_parser()
    parser.exit_on_error = parser.allow_abbrev = False
    try:
        options, unknown = parser.parse_known_intermixed_args(arguments)
    except ArgumentError as error:
        raise ConfigError(str(error)) from error
    if options.experimental_rerun is not None:  # unpickles a file
        unknown = ["--experimental-rerun"]
    if unknown:
        raise ConfigError(
            f"there is no option {unknown[0]}; values are key=value, --help shows examples"
        )
    return options


def _without(words: list[str], removed: list[str]) -> list[str]:
    """The words that are left when each of `removed` is taken out once."""
    rest = list(words)
    for word in removed:
        rest.remove(word)
    return rest


@contextmanager
def _hydra_surroundings(arguments: list[str], *, multirun: bool) -> Iterator[None]:
    """Let Hydra read `arguments`, raise its errors as they are, and keep its records to itself."""
    argv, debug = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    with TemporaryDirectory() as scratch:
        records = [f"hydra.sweep.dir='{scratch}'"] if multirun else []
        sys.argv, os.environ["HYDRA_FULL_ERROR"] = [argv[0], *records, *arguments], "1"
        try:
            yield
        finally:
            sys.argv = argv
            os.environ.pop("HYDRA_FULL_ERROR")
            if debug is not None:
                os.environ["HYDRA_FULL_ERROR"] = debug
