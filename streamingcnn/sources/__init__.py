"""Where pixels come from, read box by box."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from streamingcnn.sources.array import ArraySource
from streamingcnn.sources.masked import MaskedSource
from streamingcnn.sources.resampled import ResampledSource
from streamingcnn.sources.scaled import ScaledSource
from streamingcnn.sources.source import ConstantBlocks, ReadError, Source
from streamingcnn.sources.turned import TurnedSource

if TYPE_CHECKING:
    from streamingcnn.sources.arrays import NpyImage, ZarrImage
    from streamingcnn.sources.file import FileImage
    from streamingcnn.sources.flat import FlatImage
    from streamingcnn.sources.nifti import NiftiImage
    from streamingcnn.sources.opened import open_image
    from streamingcnn.sources.slide import SlideImage
    from streamingcnn.sources.tiff import TiffImage

__all__ = [
    "ArraySource",
    "ConstantBlocks",
    "FileImage",
    "FlatImage",
    "MaskedSource",
    "NiftiImage",
    "NpyImage",
    "ReadError",
    "ResampledSource",
    "ScaledSource",
    "SlideImage",
    "Source",
    "TiffImage",
    "TurnedSource",
    "ZarrImage",
    "open_image",
]

#: What reads files is imported when it is first asked for: a network on tensors needs none of their libraries.
_READERS = {
    "FileImage": "file",
    "FlatImage": "flat",
    "NiftiImage": "nifti",
    "NpyImage": "arrays",
    "SlideImage": "slide",
    "TiffImage": "tiff",
    "ZarrImage": "arrays",
    "open_image": "opened",
}


def __getattr__(name: str) -> object:
    if name not in _READERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_READERS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_READERS})
