"""A training run that begins with another's weights takes over its model and tokenizer."""

from pathlib import Path
from typing import Any

from lightconv_mt.errors import CheckpointError, ConfigError
from lightconv_mt.typed import read_yaml

# Parts of a configuration that weights belong to.
INHERITED = ("model", "tokenizer")
# Keys of a tokenizer that is made already; the others say how one is made.
_IN_USE = ("lowercase", "src_moses", "tgt_moses", "joins_pieces", "sampling")


def inherit(plain: dict[str, Any], words: list[str]) -> None:
    """Put the model and tokenizer of the run `start_from` into a composed configuration.

    Args:
        plain: of a training run; changed in place. Without `start_from` it stays as it is.
        words: overrides of the command line, whose single keys (model.dropout=0.2) win.

    Raises:
        CheckpointError: when `start_from` is no run folder.
        ConfigError: when the words choose another model or tokenizer altogether, or how a tokenizer
            is made.
    """
    start = plain.get("start_from")
    if not isinstance(start, str):
        return
    composed = {part: plain[part] for part in INHERITED}
    plain |= _read_parts(start, str(plain.get("run_dir")))
    for word in words:
        key, _, value = word.lstrip("+").partition("=")
        group = key.partition("@")[0]
        if group in (*INHERITED, "variant") or group.startswith("model/"):
            if key == "model/mixer" and value == plain["model"].get("mixer", {}).get("name"):
                continue
            part = "model" if group == "variant" else group.partition("/")[0]
            raise ConfigError(
                f"{word} is given, but start_from={start} brings its own {part}; leave it out, "
                f"single keys such as model.dropout may differ"
            )
        names = key.split(".")
        if names[0] == "tokenizer" and names[1] not in _IN_USE:
            name = names[1]
            if composed["tokenizer"][name] != plain["tokenizer"].get(name):
                raise ConfigError(
                    f"{word} is given, but start_from={start} brings its own tokenizer, with "
                    f"{name}={plain['tokenizer'].get(name)}; leave it out"
                )
        if key.startswith(tuple(f"{part}." for part in INHERITED)):
            _copy_value(key.split("."), composed, plain)


def _read_parts(start: str, run_dir: str) -> dict[str, Any]:
    """What is inherited; a run that went on has it too, should the first run be gone by then."""
    for folder in (start, run_dir):
        path = Path(folder) / "config.yaml"
        if not path.is_file():
            continue
        try:
            config = read_yaml(path)
        except ConfigError as error:
            raise CheckpointError(f"{path}: {error}") from error
        parts = {part: config.get(part) for part in INHERITED}
        if not all(isinstance(part, dict) for part in parts.values()):
            raise CheckpointError(f"{path} is no configuration of a run: it lacks model, tokenizer")
        return parts
    raise CheckpointError(
        f"start_from={start} is no run folder: it has no config.yaml; give the folder of a "
        f"training run, or of an imported model"
    )


def _copy_value(names: list[str], source: dict[str, Any], target: dict[str, Any]) -> None:
    *parents, last = names
    for name in parents:
        source = source[name]
        if not isinstance(target.get(name), dict):
            target[name] = {}
        target = target[name]
    target[last] = source[last]
