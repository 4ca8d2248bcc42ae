"""Slides as examples to train on: opened at a resolution, masked, turned, and scaled, box by box.

file -> at mpp -> tissue only -> turned -> mean 0, deviation 1
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamingcnn.slides.cases import Case
from streamingcnn.slides.stain import sample, stain
from streamingcnn.slides.tissue import TissueMask, tissue_mask
from streamingcnn.sources import ReadError, ScaledSource, TurnedSource, open_image
from streamingcnn.sources.source import Source
from streamingcnn.training.examples import Draw
from streamingcnn.training.settings import Settings

__all__ = ["Slides", "slide_image"]

#: Mean and deviation of the images that networks from ImageNet were trained on, in shares of 255.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
#: What glass becomes outside a tissue mask.
FILL = 255
#: How many tissue masks are remembered.
_REMEMBERED = 256


class Slides:
    """The slides of cases, by number, as settings say that a network sees them.

    Example::

        slides = Slides([case for case in cases if case.split == "train"], settings)
        net(slides.image(0, Draw()))

    Every image is opened when it is asked for, and let go of by :meth:`close`.
    """

    def __init__(self, cases: Sequence[Case], settings: Settings) -> None:
        self.cases, self.settings = tuple(cases), settings
        self.names = [case.name for case in cases]
        self.targets = torch.tensor([case.label for case in cases], dtype=torch.float64)
        self._masks: OrderedDict[str, TissueMask] = OrderedDict()
        self._stains: dict[str, tuple[Tensor, Tensor]] = {}

    def image(self, number: int, draw: Draw = Draw()) -> Source:  # noqa: B008 - it is frozen
        """A slide as the network takes it, float32, (3, height, width).

        Raises:
            OSError: it is absent, damaged, or cannot be read where it is measured.
            ValueError: it has not the resolution that is asked for, or its mask is of another image.
        """
        case = self.cases[number]
        opened = opened_case(case, self.settings)
        try:
            mean, deviation = self._measured(case, opened)
            kept = self._mask(case, opened)
        except BaseException:
            opened.close()
            raise
        image: Source = opened if kept is None else kept.over(opened, FILL)
        if draw.quarters or draw.mirror:
            image = TurnedSource(image, draw.quarters, draw.mirror)
        gain, offset = torch.tensor(draw.gain), torch.tensor(draw.offset)
        # gain * (x - mean) / deviation + offset, as one shift and one scale
        mean, deviation = mean - offset * deviation / gain, deviation / gain
        return ScaledSource(image, 1.0, mean.tolist(), deviation.tolist())

    def close(self, image: Tensor | Source) -> None:
        """Close the file behind an image."""
        below: Any = image
        while (inner := getattr(below, "source", None)) is not None and not hasattr(below, "close"):
            below = inner
        if hasattr(below, "close"):
            below.close()

    def _measured(self, case: Case, opened: Source) -> tuple[Tensor, Tensor]:
        """What pixels of 0 to 255 are shifted and divided by."""
        how = self.settings.normalise
        if how == "unit":
            return torch.zeros(3), torch.full((3,), 255.0)
        if how == "imagenet":
            return torch.tensor(IMAGENET[0]) * 255, torch.tensor(IMAGENET[1]) * 255
        if case.name not in self._stains:
            self._stains[case.name] = stain(sample(opened))
        return self._stains[case.name]

    def _mask(self, case: Case, opened: Source) -> TissueMask | None:
        how: str | Path = case.mask or self.settings.tissue
        if how == "none":
            return None
        if case.mask is None and how != "auto":
            how = Path(how) / f"{case.name}.png" if Path(how).is_dir() else Path(how)
        if case.name not in self._masks:
            self._masks[case.name] = tissue_mask(case.path, how)
        self._masks.move_to_end(case.name)
        while len(self._masks) > _REMEMBERED:
            self._masks.popitem(last=False)
        return self._masks[case.name]


def slide_image(case: Case, settings: Settings) -> Source:
    """One slide as a network of these settings takes it, unturned.

    Example::

        net, settings = load_run("runs/x")
        net(slide_image(case, settings))

    Raises:
        OSError, ValueError: as in :meth:`Slides.image`.
    """
    return Slides([case], settings).image(0)


def opened_case(case: Case, settings: Settings) -> Any:
    """The file of a case at the settings' resolution, raw.

    Raises:
        OSError, ValueError: it cannot be read, is no colour image, or has no such resolution.
    """
    opened = open_image(case.path, mpp=settings.mpp, level=settings.level, slide_mpp=case.mpp)
    if opened.axes != "CYX" or opened.shape[0] != 3 or opened.dtype != torch.uint8:
        opened.close()
        raise ReadError(
            f"{case.path} is an image of axes {opened.axes}, shape {tuple(opened.shape)}, {opened.dtype}; needed are "
            "bytes of red, green and blue"
        )
    return opened


def pixels(source: Source) -> int:
    """How many pixels a source has."""
    return int(np.prod(source.shape[-2:]))
