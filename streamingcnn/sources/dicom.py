"""DICOM slides: through OpenSlide, and through wsidicom where OpenSlide cannot.

A DICOM slide is a folder of files, one or more per level of its pyramid. OpenSlide 4 reads those that are packed as
JPEG or not at all; wsidicom (an extra) reads more ways of packing.
"""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import torch

from streamingcnn.boxes import Box
from streamingcnn.extras import require
from streamingcnn.sources.file import FileImage, Handle
from streamingcnn.sources.resolution import plausible
from streamingcnn.sources.slide import SlideImage
from streamingcnn.sources.source import ReadError

__all__ = ["DicomImage", "is_dicom"]


def is_dicom(path: Path) -> bool:
    """Whether a file, or any in a folder, begins as DICOM files do."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return any(_begins(file) for file in files if file.is_file())


def _begins(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def DicomImage(path: str | Path, level: int = 0) -> FileImage:
    """A DICOM slide as a source: a folder, or one file of it.

    Example::

        DicomImage("slide/").shape                       # (3, 40960, 51200)

    Raises:
        ReadError: it is no slide (a radiograph, say), or cannot be read.
        ModuleNotFoundError: OpenSlide cannot read it, and wsidicom is missing.
    """
    path = Path(path)
    files = sorted(file for file in path.iterdir() if file.is_file() and _begins(file)) if path.is_dir() else [path]
    for file in files:
        if openslide.OpenSlide.detect_format(file) == "dicom":
            try:
                return SlideImage(file, level)
            except ReadError:
                break
    require("wsidicom")
    return _WsiDicomImage(path, level)


class _WsiDicomImage(FileImage):
    """A level of a DICOM slide through wsidicom."""

    def __init__(self, path: Path, level: int) -> None:
        super().__init__(path)
        self._handle = Handle(partial(_opened, path), _closed)
        slide = self._handle.get().slide
        pyramid = sorted(slide.levels, key=lambda one: one.level)
        if not -len(pyramid) <= level < len(pyramid):
            raise ValueError(f"{path} has no level {level}; it has {len(pyramid)}, from 0")
        self.level = level % len(pyramid)
        chosen, first = pyramid[self.level], pyramid[0]
        self._number = chosen.level
        self.shape = (3, chosen.size.height, chosen.size.width)
        self.levels = tuple(first.size.width / one.size.width for one in pyramid)
        self.downsample = self.levels[self.level]
        self.stated_mpp = (float(chosen.mpp.height), float(chosen.mpp.width))
        full = tuple(size / self.downsample for size in self.stated_mpp)
        self.mpp = self.stated_mpp if plausible(full) else None

    def at_level(self, level: int) -> FileImage:
        return self if level == self.level else _WsiDicomImage(self.path, level)

    def _pixels(self, box: Box) -> torch.Tensor:
        (top, bottom), (left, right) = box
        opened = self._handle.get()
        try:
            with opened.lock:
                region = opened.slide.read_region((left, top), self._number, (right - left, bottom - top))
        except Exception as error:
            raise ReadError(
                f"{self.path}: the region {box} of level {self.level} cannot be read ({error}); the file is damaged or "
                "incomplete, copy it again or leave it out"
            ) from error
        return torch.from_numpy(np.array(region.convert("RGB"))).permute(2, 0, 1).contiguous()

    def close(self) -> None:
        self._handle.close()


class _Opened:
    def __init__(self, slide: Any) -> None:
        self.slide, self.lock = slide, threading.Lock()


def _opened(path: Path) -> _Opened:
    import wsidicom

    try:
        return _Opened(wsidicom.WsiDicom.open(path))
    except Exception as error:
        raise ReadError(f"{path} is no DICOM slide that can be read ({error})") from error


def _closed(opened: _Opened) -> None:
    opened.slide.close()
