"""What --help prints: the head of the primary config, and the options of its groups."""

from collections.abc import Iterable, Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import takewhile
from pathlib import Path

import yaml


def help_text(command: str, *, config_dir: str | None) -> str:
    """Help of a command; Hydra's own takes longer than a second to list groups.

    Args:
        command: name of the primary config.
        config_dir: folder with more YAML files, from --config-dir.
    """
    folders: list[Traversable] = [files("lightconv_mt.configs")]
    folders += [Path(config_dir)] if config_dir is not None else []
    source = folders[0].joinpath(f"{command}.yaml").read_text(encoding="utf-8")
    head = [line[2:] for line in takewhile(lambda line: line.startswith("#"), source.splitlines())]
    entries = [entry for entry in yaml.safe_load(source)["defaults"] if isinstance(entry, dict)]
    names = [key.partition("@")[0] for entry in entries for key in entry if " " not in key]
    groups = [
        f"  {name}: {', '.join(option_names(folders, name))}" for name in dict.fromkeys(names)
    ]
    foot = [line.replace("NAME", f"lcmt-{command}") for line in _FOOT]
    return "\n".join([*head, "", "Groups (group=option):", "", *groups, "", *foot, ""])


# Groups whose folders hold options of the group itself: experiment=ablation/lightconv.
_NESTING = frozenset({"experiment"})

_FOOT = [
    "Keys (key=value): NAME --cfg job prints all of them with their values.",
    "Your own YAML files: --config-dir DIR. Several runs: --multirun key=1,2,3.",
    'Completion in bash: eval "$(NAME --shell-completion install=bash)".',
]


def group_names(folder: Traversable, prefix: str = "") -> Iterator[str]:
    """Config groups below a folder, as `model/mixer`."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir() and not entry.name.startswith("_"):
            yield prefix + entry.name
            yield from group_names(entry, f"{prefix}{entry.name}/")


def option_names(folders: Iterable[Traversable], group: str) -> list[str]:
    """Names of the YAML files of a group in any of the folders; those of experiments may nest."""
    found = [folder.joinpath(group) for folder in folders]
    entries = [entry for folder in found if folder.is_dir() for entry in folder.iterdir()]
    names = {entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml")}
    inner = sorted({entry.name for entry in entries if entry.is_dir()} if group in _NESTING else ())
    nested = [f"{each}/{name}" for each in inner for name in option_names(found, each)]
    return sorted(names) + nested
