"""From the words of a command line to configurations: Hydra, told the schemas and kept quiet."""

import os
import sys
from argparse import ArgumentError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lightconv_mt.errors import ConfigError
from lightconv_mt.overrides import explain, quote_text
from lightconv_mt.typed import Registers


def compose(
    command: str,
    arguments: list[str],
    job: Callable[[DictConfig], None],
    *,
    root: type,
    registers: Registers,
) -> None:
    """Call `job` with each configuration the arguments describe: several with --multirun.

    It is not called when they only ask for something to be printed, such as --help.

    Args:
        command: name of the primary config.
        arguments: words after the command's name.
        job: raises no Exception.
        root: schema of the primary config.
        registers: see `typed.Registers`.

    Raises:
        ConfigError: on anything in the arguments or files that cannot be composed.
    """
    multirun = _check_options(arguments)
    register_schemas({command: root}, registers=registers)
    words = (
        arguments
        if multirun
        else [quote_text(word, root, registers=registers) for word in arguments]
    )
    decorate = hydra.main(
        version_base="1.3", config_path="pkg://lightconv_mt.configs", config_name=command
    )
    with TemporaryDirectory() as scratch, _raw_errors():
        if (
            multirun and command != "train"
        ):  # the sweep's own record, of no use where runs have no folder
            words = [*words, f"hydra.sweep.dir='{scratch}'"]
        before = sys.argv
        sys.argv = [before[0], *words]
        try:
            decorate(job)()
        except Exception as error:
            explained = explain(error, root, registers=registers)
            if explained is None:
                raise
            raise explained from error
        finally:
            sys.argv = before


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
    OmegaConf.register_new_resolver("per_layer", per_layer, replace=True)


def per_layer(values: list[int], num_layers: int) -> list[int]:
    """Resolve `${per_layer:[3,7,15,31],N}`: N values, the last one repeated if there are fewer."""
    return [values[min(layer, len(values) - 1)] for layer in range(num_layers)]


def plain_values(config: DictConfig, *, root: type, registers: Registers) -> dict[str, Any]:
    """Plain values of a composed configuration, every `${...}` resolved.

    A training run of a sweep gets a folder of its own inside run_dir.

    Raises:
        ConfigError: when a `${...}` cannot be resolved.
    """
    try:
        plain = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    except Exception as error:
        raise explain(error, root, registers=registers) or error from error
    assert isinstance(plain, dict), type(plain)
    context = HydraConfig.get()
    if context.mode is RunMode.MULTIRUN and context.sweep.dir == plain.get("run_dir"):
        plain["run_dir"] = context.runtime.output_dir
    return {str(key): value for key, value in plain.items()}


def _check_options(arguments: list[str]) -> bool:
    """Refuse unknown options; whether --multirun is among the known ones."""
    parser = get_args_parser()
    parser.exit_on_error = parser.allow_abbrev = False
    try:
        options, unknown = parser.parse_known_args(arguments)
    except ArgumentError as error:
        raise ConfigError(str(error)) from error
    if options.experimental_rerun is not None:  # unpickles a file
        unknown = ["--experimental-rerun"]
    if unknown:
        raise ConfigError(
            f"there is no option {unknown[0]}; values are key=value, --help shows examples"
        )
    return bool(options.multirun)


@contextmanager
def _raw_errors() -> Iterator[None]:
    """Let Hydra raise its errors instead of printing them with hints for programmers."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before
