"""Files and folders that are whole or absent.

A disk that fills up, a folder without permission or a Ctrl-C in the middle must not leave half a slide that
the next run takes for a whole one. So everything is written beside its final place under another name, and
renamed when it is complete; on an error the unfinished part is removed and the message says what to do.

    out/.slides.4711.partial/...      while writing
    out/slides/...                    after the rename, which is one step for the file system
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streamingcnn.memory import format_bytes

__all__ = ["explained", "remove_partials", "to_disk", "whole_file", "whole_folder"]


@contextmanager
def whole_file(path: Path, durable: bool = False) -> Iterator[Path]:
    """The path to write to; the file appears at ``path`` when the block ends without an error.

    Example::

        with whole_file(Path("report.html")) as partial:
            partial.write_text("...")

    With ``durable`` it also survives a machine that stops: the content is on the disk before the rename, and the
    rename before the block has ended.

    Raises:
        OSError: it could not be written; nothing is left behind, an older file at ``path`` stays.
    """
    partial = _partial(path)
    try:
        yield partial
        if durable:
            to_disk(partial)
        os.replace(partial, path)
        if durable:
            to_disk(path.parent)
    except OSError as error:
        raise explained(error, path) from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """The folder to fill; it appears at ``path`` when the block ends without an error.

    Example::

        with whole_folder(Path("slides")) as partial:
            (partial / "labels.csv").write_text("...")

    An older folder at ``path`` is replaced; parents are made where missing.

    Raises:
        OSError: it could not be written; nothing is left behind, an older folder at ``path`` stays.
    """
    partial, older = _partial(path), path.with_name(f".{path.name}.{os.getpid()}.older")
    try:
        partial.mkdir(parents=True)
        yield partial
        if path.exists():
            os.replace(path, older)
        os.replace(partial, path)
    except OSError as error:
        raise explained(error, path) from error
    finally:
        for leftover in (partial, older):
            shutil.rmtree(leftover, ignore_errors=True)


def remove_partials(path: Path) -> int:
    """Remove what a killed process left of unfinished writes of ``path``; how many there were."""
    leftovers = list(path.parent.glob(f".{path.name}.*.partial"))
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return len(leftovers)


def to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk (fsync); folders only where the system can."""
    if path.is_dir() and os.name != "posix":  # a folder is no file that Windows would open
        return
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def explained(error: OSError, path: Path) -> OSError:
    """The same error with the free space of the disk and the way out in its message."""
    reason = error.strerror or str(error)
    if error.errno is None:
        return OSError(f"could not write {path}: {reason}")
    folder = next((parent for parent in path.absolute().parents if parent.exists()), Path("/"))
    free = format_bytes(shutil.disk_usage(folder).free)
    advice = f"{free} free in {folder}; nothing half-written was left; free some space or choose another folder"
    return OSError(error.errno, f"could not write: {reason} ({advice})", str(path))
