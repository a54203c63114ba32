"""A run folder: locked for one trainer, opened for one configuration, searched for a checkpoint."""

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import portalocker

from lightconv_mt.config import TrainRunConfig, load_run_config
from lightconv_mt.data.corpus import read_corpus
from lightconv_mt.data.tokenizer_pair import TokenizerPair, build_tokenizers
from lightconv_mt.errors import CheckpointError, ConfigError, DataError
from lightconv_mt.train.checkpoint import CheckpointStore
from lightconv_mt.typed import to_plain, to_yaml
from lightconv_mt.whole_files import replace_text

# What may change between the runs of one run folder: none of it decides what an already made step
# computed.
FREE_KEYS = (
    "run_dir",
    "dry_run",
    "runtime.device",
    "runtime.threads",
    "runtime.keep_memory",
    "runtime.parallel",
    "runtime.timeout_seconds",
    "train.max_",
    "train.patience",
    "checkpoint.",
    "decode.",
    "train.log",
    "train.num_samples",
    "data.cache_dir",
    "batch.num_workers",
)


@contextmanager
def writing(folder: Path, *, key: str = "run_dir") -> Iterator[None]:
    """Turn what the disk refuses into one line, in which `key` of the configuration is the folder.

    Raises:
        ConfigError: when something cannot be read or written there.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot write {key}={folder}: {error.strerror}; choose another folder"
        ) from error


@contextmanager
def lock_run(run_dir: Path, *, key: str = "run_dir", work: str = "trained") -> Iterator[None]:
    """Hold a folder, creating it if need be, so that a second process is refused.

    The operating system frees the lock when the process ends, however it ends.

    Args:
        run_dir: the folder.
        key: of the configuration, that names it.
        work: what is done to it.

    Raises:
        ConfigError: when another process holds it, or it cannot be written.
    """
    path = run_dir / "lock"
    with writing(run_dir, key=key):
        run_dir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    with file:
        try:
            portalocker.lock(file, portalocker.LOCK_EX | portalocker.LOCK_NB)
        except portalocker.LockException as error:
            file.seek(0)
            raise ConfigError(
                f"{run_dir} is being {work} by {file.read() or 'another process'}; "
                f"wait for it, or choose another {key}"
            ) from error
        file.truncate(0)
        with suppress(OSError):  # a full disk; what is locked counts, not what it says
            os.write(file.fileno(), f"process {os.getpid()} on {platform.node()}".encode())
        yield
        file.truncate(0)


def open_run(run_dir: Path, config: TrainRunConfig) -> CheckpointStore:
    """Write the configuration into a locked run folder, or check that it is the one in there.

    Raises:
        ConfigError: as `check_run`, or when the folder cannot be written.
    """
    path, text = run_dir / "config.yaml", to_yaml(config)
    store = check_run(run_dir, config)
    with writing(run_dir):
        if not path.exists() or path.read_text() != text:
            replace_text(path, text)
    store.remove_leftovers()
    return store


def check_run(run_dir: Path, config: TrainRunConfig) -> CheckpointStore:
    """Check that a run folder, if it is there, takes the configuration; nothing is written.

    Raises:
        ConfigError: naming the key that differs, with both values, or when the folder holds a model
            without a state to go on from.
    """
    store = CheckpointStore(run_dir, config.checkpoint)
    if (run_dir / "average").exists() and not store.steps():
        raise ConfigError(
            f"{run_dir} holds a model but no state of a training run to go on from; "
            f"give start_from={run_dir} and another run_dir"
        )
    if (run_dir / "config.yaml").exists():
        check_same(run_dir, to_plain(load_run_config(run_dir)), to_plain(config), free=FREE_KEYS)
    return store


def check_corpus(run_dir: Path, config: TrainRunConfig, digest: str, *, save: bool) -> None:
    """Check that the training text is that of the steps already made; a run without one takes any.

    Args:
        run_dir: the run folder.
        config: of the run.
        digest: of the text; see `Corpus.digest`.
        save: whether it is kept in the folder.

    Raises:
        DataError: naming both digests.
        ConfigError: when the folder cannot be written.
    """
    path = run_dir / "corpus.sha256"
    with writing(run_dir):
        then = path.read_text().strip() if path.exists() else None
        if then not in (None, digest) and CheckpointStore(run_dir, config.checkpoint).steps():
            raise DataError(
                f"{run_dir} was trained on other text than data.train has now (sha256 {then[:12]}, "
                f"not {digest[:12]}); give it the former files, or choose another run_dir and "
                f"start_from={run_dir}"
            )
        if save and then != digest:
            replace_text(path, f"{digest}\n")


def check_writable(run_dir: Path) -> None:
    """Check that a run folder could be made, or written to, and leave nothing there.

    Raises:
        ConfigError: when it could not.
    """
    with writing(run_dir):
        there = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
        with TemporaryDirectory(dir=there):
            pass


def run_tokenizers(run_dir: Path, config: TrainRunConfig, *, save: bool = True) -> TokenizerPair:
    """The run's tokenizers, made, or taken from the run it starts from, at its first start.

    Args:
        run_dir: the run folder.
        config: of the run.
        save: whether new ones are kept in the folder.

    Raises:
        ConfigError: when they cannot be written there.
    """
    if TokenizerPair.is_saved(run_dir):
        return TokenizerPair.load(run_dir, config.tokenizer)
    if config.start_from is not None:
        tokenizers = TokenizerPair.load(Path(config.start_from), config.tokenizer)
    else:
        corpus = read_corpus(config.data)
        sides = corpus.src_sentences(), corpus.tgt_sentences()
        tokenizers = build_tokenizers(config.tokenizer, *sides)
    try:
        if save:
            tokenizers.save(run_dir)
    except OSError as error:
        raise ConfigError(
            f"cannot write the tokenizer into run_dir={run_dir}: {error.strerror}; "
            f"free some space or choose another folder"
        ) from error
    return tokenizers


def same_tokenizers(run_dirs: Sequence[Path], configs: Sequence[TrainRunConfig]) -> TokenizerPair:
    """The tokenizers of the runs of an ensemble, whose ids must mean the same.

    Raises:
        CheckpointError: naming two folders with different ones.
    """
    pairs = [
        TokenizerPair.load(run_dir, config.tokenizer)
        for run_dir, config in zip(run_dirs, configs, strict=True)
    ]
    for run_dir, pair in zip(run_dirs, pairs, strict=True):
        if pair.digest != pairs[0].digest:
            raise CheckpointError(
                f"{run_dirs[0]} and {run_dir} have different tokenizers; an ensemble is of runs "
                f"that share them (tokenizer.src_model trains a run with those of another)"
            )
    return pairs[0]


def find_checkpoint(run_dir: Path, wanted: str, config: TrainRunConfig) -> Path:
    """Folder of the weights that `wanted` names.

    Raises:
        CheckpointError: when there are none.
    """
    store = CheckpointStore(run_dir, config.checkpoint)
    steps, best, average = store.steps(), store.best_step(), run_dir / "average"
    candidates = {
        "average": average if average.exists() else None,
        "best": store.path(best) if best is not None else None,
        "last": store.path(steps[-1]) if steps else None,
    }
    found = [path for name, path in candidates.items() if path and wanted in ("auto", name)]
    if wanted.isdigit() and int(wanted) in steps:
        found = [store.path(int(wanted))]
    if not found:
        there = [*(name for name, path in candidates.items() if path), *map(str, steps)]
        raise CheckpointError(
            f"{run_dir} has no checkpoint {wanted}; there is {', '.join(there) or 'none yet'}"
        )
    return found[0]


def find_start(run_dir: str) -> Path:
    """Folder of the weights that another run begins with: average, else best, else last."""
    return find_checkpoint(Path(run_dir), "auto", load_run_config(run_dir))


def check_same(
    folder: Path,
    then: dict[str, Any],
    now: dict[str, Any],
    *,
    free: tuple[str, ...],
    remedy: str = "choose another run_dir",
) -> None:
    """Refuse to go on in a folder with other values than it was started with.

    Args:
        folder: the folder.
        then: plain values that it was started with.
        now: those asked for.
        free: beginnings of the keys that may differ.
        remedy: what to do but repeat the command of before.

    Raises:
        ConfigError: naming the first key that differs, with both values.
    """
    old, new = _flat(then), _flat(now)
    for key in {**old, **new}:
        if new.get(key) != old.get(key) and not key.startswith(free):
            raise ConfigError(
                f"{folder} was started with {key}={old.get(key)}, not {new.get(key)}; "
                f"repeat its command, or {remedy}"
            )


def _flat(values: object, prefix: str = "") -> dict[str, object]:
    """Dotted keys of nested dicts."""
    if not isinstance(values, dict):
        return {prefix: values}
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat
