"""A heatmap as files: what viewers open, what other programs read.

NAME.tif       pyramid of tiles, 0 to 255, with its resolution: OpenSlide, QuPath, ASAP
NAME.geojson   contours: drag and drop into QuPath
NAME.png       the slide with the heat over it
NAME.npz       the numbers themselves, and where they lie
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray

from streamingcnn.files import whole_file
from streamingcnn.slides.annotations import Outline
from streamingcnn.slides.contours import THRESHOLDS, geojson
from streamingcnn.slides.heatmaps import Heatmap, overlay
from streamingcnn.slides.thumbnail import thumbnail
from streamingcnn.sources.source import Source

__all__ = ["ENDINGS", "read_heatmap", "write_heatmap", "write_tiff"]

#: Of the files of one heatmap.
ENDINGS = (".tif", ".geojson", ".png", ".npz")
_TILE = 256
_REDUCED_IMAGE = 1


def write_heatmap(
    heatmap: Heatmap,
    image: str | Path | Source,
    stem: Path,
    *,
    outlines: Sequence[Outline] = (),
    thresholds: Sequence[float] = THRESHOLDS,
) -> list[Path]:
    """Write the four files above; returns their paths.

    Example::

        write_heatmap(heatmap, "slide.svs", Path("heatmaps/slide"))

    Args:
        heatmap: over the slide.
        image: the slide, for the picture.
        stem: the files' path without ending; its folder is made.
        outlines: drawn on the picture, in pixels of level 0.
        thresholds: of the contours.

    Raises:
        OSError: one could not be written; none is half-written.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.parent / f"{stem.name}{ending}" for ending in ENDINGS]
    write_tiff(heatmap, paths[0])
    with whole_file(paths[1]) as partial:
        partial.write_text(json.dumps(geojson(heatmap, thresholds)), encoding="utf-8")
    small = thumbnail(image, longest=1536)
    pixels = torch.from_numpy(np.array(small.picture())).permute(2, 0, 1)
    drawn = overlay(pixels, heatmap.at((pixels.shape[1], pixels.shape[2])), outlines, downsample=small.scale[0])
    with whole_file(paths[2]) as partial:
        drawn.save(partial, format="PNG")
    with whole_file(paths[3]) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            heat=heatmap.heat,
            scale=np.array(heatmap.scale),
            size=np.array(heatmap.size),
            mpp=np.array(heatmap.mpp or (np.nan, np.nan)),
            how=np.array(heatmap.how),
        )
    return paths


def read_heatmap(path: str | Path) -> Heatmap:
    """A heatmap from its .npz, to be drawn again without the network."""
    with np.load(path, allow_pickle=False) as content:
        y, x = content["scale"].tolist()
        height, width = content["size"].tolist()
        mpp = content["mpp"].tolist()
        known = None if np.isnan(mpp).any() else (mpp[0], mpp[1])
        return Heatmap(content["heat"], (y, x), (height, width), known, str(content["how"]))


def write_tiff(heatmap: Heatmap, path: Path) -> None:
    """Write a heatmap as a pyramid of tiles with resolution tags, 0 (cold) to 255 (hot), a pixel for each cell.

    Its corner is the slide's corner. Where the slide has no resolution, the description alone says how large a cell is.
    """
    level: NDArray[np.float32] = heatmap.heat
    resolution: tuple[float, float] | None = None
    description = {"how": heatmap.how, "level-0 pixels to a pixel (y, x)": list(heatmap.scale), "size": heatmap.size}
    with whole_file(path) as partial, tifffile.TiffWriter(partial, bigtiff=True) as tiff:
        factor = 1
        while True:
            if heatmap.mpp is not None:
                y, x = (m * s * factor for m, s in zip(heatmap.mpp, heatmap.scale, strict=True))
                resolution = (1e4 / x, 1e4 / y)
            tiff.write(
                _tiles(level),
                shape=level.shape,
                dtype=np.uint8,
                tile=(_TILE, _TILE),
                photometric="minisblack",
                compression="adobe_deflate",
                subfiletype=_REDUCED_IMAGE if factor > 1 else 0,
                description=json.dumps(description) if factor == 1 else None,
                metadata=None,
                maxworkers=1,
                resolution=resolution,
                resolutionunit=None if resolution is None else "CENTIMETER",
            )
            if max(level.shape) <= _TILE:
                return
            level, factor = _halved(level), factor * 2


def _tiles(level: NDArray[np.float32]) -> Iterator[NDArray[np.uint8]]:
    for top in range(0, level.shape[0], _TILE):
        for left in range(0, level.shape[1], _TILE):
            part = np.rint(255 * level[top : top + _TILE, left : left + _TILE]).astype(np.uint8)
            yield np.pad(part, [(0, _TILE - length) for length in part.shape])


def _halved(level: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean of every 2 x 2 cells; a last odd row or column counts twice."""
    even = np.pad(level, [(0, length % 2) for length in level.shape], mode="edge")
    means: NDArray[np.float32] = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2).mean((1, 3))
    return means
