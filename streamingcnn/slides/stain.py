"""Taking a slide's own stain out of its pixels.

How strongly a slide was stained and how bright the scanner's lamp was differ far more from slide to slide
than a lesion differs from the tissue around it. A network can learn to look past that, but from slide labels
alone it takes long to find out. So every slide is measured first, on its own tissue; a sample is enough.
"""

from __future__ import annotations

import torch
from torch import Tensor

from streamingcnn.sources.source import Source

__all__ = ["sample", "stain", "standardised"]

#: A pixel is tissue where its darkest channel is below this, of 255; glass is brighter in all three.
_GLASS = 205
#: Statistics are taken from every so many pixels along each axis.
_STEP = 8
#: Used where a slide shows no tissue: mean and deviation of an ordinary one.
_ORDINARY = (200.0, 40.0)
#: A larger image is sampled by boxes: so many along each axis, of so many pixels.
_WHOLE, _BOXES, _BOX = 2048, 24, 64


def standardised(slides: Tensor) -> Tensor:
    """Slides with the mean of their tissue at 0 and its standard deviation at 1 in each channel, float32.

    >>> pixels = torch.arange(2 * 3 * 256 * 256) * 7919 % 200
    >>> slides = pixels.reshape(2, 3, 256, 256).to(torch.uint8)
    >>> standardised(slides).mean((0, 2, 3)).abs().max() < 0.2
    tensor(True)

    ``slides`` is (N, 3, height, width) uint8; each is measured by itself, on every eighth pixel.
    """
    return torch.stack([_standardised(slide) for slide in slides])


def _standardised(slide: Tensor) -> Tensor:
    mean, deviation = stain(slide[:, ::_STEP, ::_STEP])
    return (slide.float() - mean[:, None, None]) / deviation[:, None, None]


def stain(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over the tissue among pixels (3, ...) of 0 to 255.

    >>> mean, deviation = stain(torch.randint(0, 200, (3, 64, 64), dtype=torch.uint8))
    >>> mean.shape
    torch.Size([3])
    """
    flat = pixels.flatten(1).float()
    tissue = flat[:, flat.amin(0) < _GLASS]
    if tissue.shape[1] < 2:
        return torch.full((3,), _ORDINARY[0]), torch.full((3,), _ORDINARY[1])
    return tissue.mean(1), tissue.std(1).clamp(min=1)


def sample(image: Source) -> Tensor:
    """Pixels from all over an image (3, n): every eighth of a small one, boxes on a grid from a large one.

    Example::

        mean, deviation = stain(sample(open_image("slide.svs", mpp=0.5)))
    """
    height, width = image.shape[-2:]
    if max(height, width) <= _WHOLE:
        return image.read(((0, height), (0, width)))[:, ::_STEP, ::_STEP].flatten(1)
    read = [
        image.read(((top, min(top + _BOX, height)), (left, min(left + _BOX, width))))
        for top in _places(height)
        for left in _places(width)
    ]
    return torch.cat([pixels[:, ::_STEP, ::_STEP].flatten(1) for pixels in read], 1)


def _places(extent: int) -> list[int]:
    """Where boxes start that are spread evenly over an axis."""
    last = max(0, extent - _BOX)
    return sorted({round(last * (k + 0.5) / _BOXES) for k in range(_BOXES)})
