"""Checkpoints that are whole or absent, and that cannot run code.

A checkpoint is made in memory, written beside its final place, brought to the disk (fsync), and renamed: whenever the
process or the machine stops, the file under the final name is the old one or the new one. Reading accepts tensors,
numbers, texts, lists and tables (``weights_only``), so that a file from a stranger is data and nothing else.
"""

from __future__ import annotations

import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from streamingcnn.files import whole_file

__all__ = ["read_checkpoint", "read_tensors", "write_checkpoint"]

#: What a file of ours says of itself.
KIND = "streamingcnn run"
VERSION = 1


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint of tensors, numbers, texts, lists and dicts.

    Example::

        write_checkpoint(Path("last.pt"), {"net": net.state_dict(), "step": 12})

    Raises:
        OSError: it could not be written; an older file under this name is still there.
    """
    made = io.BytesIO()  # torch.save itself tells a full disk by a RuntimeError without a word of it
    torch.save({"kind": KIND, "version": VERSION, **content}, made)
    with whole_file(path, durable=True) as partial:
        partial.write_bytes(made.getbuffer())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What :func:`write_checkpoint` wrote, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds code, or is no checkpoint of a run.
    """
    found = read_tensors(path)
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise ValueError(f"{path} is no checkpoint of `streamingcnn train`; weights alone go to --weights")
    if found["version"] != VERSION:
        raise ValueError(f"{path} has format {found['version']}, and this version of streamingcnn reads {VERSION}")
    return found


def read_tensors(path: Path) -> Any:
    """What a torch file holds, on the CPU, without running any code that it may carry.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or holds more than data; the message says which.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path.absolute()}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # on pickles of other protocols, which are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"{path} was not loaded: it holds more than tensors, numbers and texts, or is no torch file, and what else "
            f"it holds could be code ({reason})"
        ) from None
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged or no torch file: {error}") from None
