"""Folders that are whole or invisible: written aside, digested, synced, renamed."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from lightconv_mt import whole_files
from lightconv_mt.errors import CheckpointError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"


def write_folder(folder: Path, files: dict[str, Callable[[Path], object]], *, size: int) -> None:
    """Write files and their manifest into a folder that appears whole or not at all.

    Args:
        folder: to be created, or replaced once the new one is written and synced.
        files: what writes each file, by name.
        size: bytes that all of them take, about; asked for before the first is written.

    Raises:
        CheckpointError: naming path, bytes and cause; what was there is there then.
    """
    temporary = whole_files.aside(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        whole_files.announce("create", temporary)
        temporary.mkdir(parents=True)
        free = shutil.disk_usage(temporary).free
        if free < size:
            raise OSError(f"only {free:,} bytes are free")
        manifest = {}
        for name, write in files.items():
            path = temporary / name
            whole_files.announce("write", path)
            write(path)
            manifest[name] = {"sha256": whole_files.sha256_of(path), "bytes": path.stat().st_size}
        whole_files.announce("write", temporary / MANIFEST)
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        whole_files.sync([*(temporary / name for name in files), temporary / MANIFEST, temporary])
        if folder.exists():
            whole_files.announce("hide", folder)
            shutil.rmtree(_former(folder), ignore_errors=True)
            os.replace(folder, _former(folder))
        whole_files.announce("rename", folder)
        os.replace(temporary, folder)
        whole_files.sync([folder.parent])
        _drop_former(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _drop_former(folder)
        raise CheckpointError(
            f"cannot write {folder} ({size:,} bytes): {error.strerror or error}; "
            f"what was there before is intact; free some space or choose another folder"
        ) from error


def verify_folder(folder: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        CheckpointError: naming the first file that is missing or differs.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        there = {path.name for path in folder.iterdir()} - {MANIFEST}
        if manifest.keys() != there:
            names = ", ".join(sorted(manifest.keys() ^ there))
            raise CheckpointError(f"{folder} is damaged: {MANIFEST} and files differ by {names}")
        for name, entry in manifest.items():
            path = folder / name
            if (path.stat().st_size, whole_files.sha256_of(path)) != (
                entry["bytes"],
                entry["sha256"],
            ):
                raise CheckpointError(f"{path} is damaged: it is not the file of {MANIFEST}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder} is no whole checkpoint: {error}") from error


def remove_folder(folder: Path) -> None:
    """Remove a folder, out of sight first, so that half of one is never seen; failing is logged."""
    hidden = whole_files.aside(folder)
    try:
        whole_files.announce("hide", folder)
        os.replace(folder, hidden)
        whole_files.announce("remove", hidden)
        shutil.rmtree(hidden)
    except OSError as error:
        logger.warning("cannot remove %s: %s", folder, error.strerror or error)


def remove_leftovers(parent: Path) -> None:
    """Remove what an interrupted call of this module left in a folder; a former one comes back."""
    for former in parent.glob(".*.former"):
        _drop_former(parent / former.name.removeprefix(".").removesuffix(".former"))
    for leftover in parent.glob(".*.tmp-*"):
        whole_files.remove(leftover)


def _former(folder: Path) -> Path:
    """Where a folder is while another takes its place."""
    return folder.with_name(f".{folder.name}.former")


def _drop_former(folder: Path) -> None:
    """Remove the folder that was replaced, or bring it back where it was not."""
    if folder.exists():
        shutil.rmtree(_former(folder), ignore_errors=True)
    elif _former(folder).exists():
        os.replace(_former(folder), folder)
