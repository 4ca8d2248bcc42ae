"""Taking a slide's own stain out of its pixels.

How strongly a slide was stained and how bright the scanner's lamp was differ far more from slide to slide
than a lesion differs from the tissue around it. A network can learn to look past that, but from slide labels
alone it takes long to find out. So every slide is measured first, on its own tissue; a thumbnail is enough.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["standardised"]

#: A pixel is tissue where its darkest channel is below this, of 255; glass is brighter in all three.
_GLASS = 205
#: Statistics are taken from every so many pixels along each axis.
_STEP = 8
#: Used where a slide shows no tissue: mean and deviation of an ordinary one.
_ORDINARY = (200.0, 40.0)


def standardised(slides: Tensor) -> Tensor:
    """Slides with the mean of their tissue at 0 and its standard deviation at 1 in each channel, float32.

    >>> slides = torch.randint(0, 200, (2, 3, 64, 64), dtype=torch.uint8)
    >>> standardised(slides).mean((0, 2, 3)).abs().max() < 0.2
    tensor(True)

    ``slides`` is (N, 3, height, width) uint8; each is measured by itself, on every eighth pixel.
    """
    return torch.stack([_standardised(slide) for slide in slides])


def _standardised(slide: Tensor) -> Tensor:
    thumbnail = slide[:, ::_STEP, ::_STEP].flatten(1).float()
    tissue = thumbnail[:, thumbnail.amin(0) < _GLASS]
    if tissue.shape[1] < 2:
        mean, deviation = (slide.new_full((3, 1), value, dtype=torch.float32) for value in _ORDINARY)
    else:
        mean, deviation = tissue.mean(1, keepdim=True), tissue.std(1, keepdim=True).clamp(min=1)
    return (slide.float() - mean[..., None]) / deviation[..., None]
