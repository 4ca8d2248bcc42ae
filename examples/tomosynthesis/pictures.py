"""What 3D-GMIC found in a volume: a GIF through the slices, single slices, and the crops with their attention."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from examples.tomosynthesis.volumes import standardised
from streamingcnn.mammography import film, picture, slice_picture
from streamingcnn.synthetic.tomosynthesis import Volume


@torch.no_grad()
def draw(net: nn.Module, volume: Volume, folder: Path, slices: Sequence[int] = ()) -> None:
    """volume.gif, crops.png and slice_NN.png; outlines are the truth."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = volume.array()
    masks = np.stack([volume.mask(z) for z in range(len(pixels))], 1)
    result = net.eval()(standardised(torch.from_numpy(pixels)[None, None]))
    saliency = result.saliency[0].numpy()
    # Transparent where most cells are, densest where the highest is: maps are sparse, and their heights are no
    # probabilities.
    limits = (float(np.quantile(saliency, 0.9)), float(saliency.max()))
    film(folder / "volume.gif", pixels, saliency, masks, limits=limits)
    for number in slices:
        made = slice_picture(pixels, number, saliency, masks, limits=limits, scale=2)
        made.save(folder / f"slice_{number:02d}.png")
    # The slice where the likelier kind of lesion is seen best, and the windows that lie in it.
    kind = int(result.prediction[0].argmax())
    best = int(saliency[kind].max((1, 2)).argmax())
    order = result.attention[0].argsort(descending=True)
    here = order[result.crop_slices[0, order] == best]
    picture(
        pixels[best],
        saliency[:, best],
        masks=masks[:, best],
        crops=result.crops[0, order, 0].numpy(),
        attention=result.attention[0, order].tolist(),
        locations=[(int(row), int(column)) for row, column in result.locations[0, here].tolist()],
        limits=limits,
    ).save(folder / "crops.png")
