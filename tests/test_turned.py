"""A turned source gives, box by box, what turning all pixels gives; and so a streamed network's result."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from streamingcnn import StreamingModule
from streamingcnn.sources import ArraySource, MaskedSource, TurnedSource
from streamingcnn.sources.source import constant_blocks_of

TURNS = list(itertools.product(range(4), (False, True)))


@pytest.mark.parametrize("quarters, mirror", TURNS)
def test_a_box_of_the_turned_image(quarters: int, mirror: bool) -> None:
    pixels = torch.randn(2, 13, 21)
    whole = torch.rot90(pixels, quarters, (-2, -1))
    whole = whole.flip(-1) if mirror else whole
    turned = TurnedSource(ArraySource(pixels), quarters, mirror)
    assert turned.shape == tuple(whole.shape)
    for box in (((0, whole.shape[1]), (0, whole.shape[2])), ((2, 9), (5, 6)), ((3, 3), (0, 4)), ((12, 13), (12, 13))):
        assert torch.equal(turned.read(box), whole[:, slice(*box[0]), slice(*box[1])]), box


@pytest.mark.parametrize("quarters, mirror", TURNS)
def test_constant_blocks_turn_along(quarters: int, mirror: bool) -> None:
    """Also where the last block is cut, and so the blocks of the turned image are no blocks of the image."""
    kept = np.zeros((5, 7), bool)
    kept[1:3, 2:6] = True
    for extents in ((20, 28), (18, 25)):
        pixels = torch.randn(1, *extents)
        turned = TurnedSource(MaskedSource(ArraySource(pixels), kept, 0.5, steps=(4, 4)), quarters, mirror)
        blocks = constant_blocks_of(turned)
        assert blocks is not None and blocks.share > 0.2
        blocks.check(turned.shape[1:])
        for (row, column), label in np.ndenumerate(blocks.labels):
            box = tuple(
                (k * 4, min(k * 4 + 4, extent)) for k, extent in zip((row, column), turned.shape[1:], strict=True)
            )
            if label >= 0:
                assert (turned.read(box) == 0.5).all()


def test_a_streamed_network_over_a_turned_masked_image_is_exact() -> None:
    kept = np.zeros((6, 6), bool)
    kept[2:4, 1:4] = True
    image = MaskedSource(ArraySource(torch.rand(3, 90, 96, dtype=torch.float64)), kept, 1.0, steps=(16, 16))
    net = nn.Sequential(nn.Conv2d(3, 4, 5, 2, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1)).double()
    turned = TurnedSource(image, 3, True)
    plain = net(turned.read(((0, 96), (0, 90)))[None])
    torch.testing.assert_close(StreamingModule(net, tile=16)(turned), plain, atol=1e-10, rtol=0)


def test_only_images_turn() -> None:
    with pytest.raises(ValueError, match="only images are turned; this source has axes CZYX"):
        TurnedSource(ArraySource(torch.zeros(1, 2, 3, 4)))
    image = ArraySource(torch.zeros(1, 3, 4))
    image.mpp = (0.5, 0.25)  # type: ignore[attr-defined]
    assert TurnedSource(image, 1).mpp == (0.25, 0.5) and TurnedSource(image, 2).mpp == (0.5, 0.25)
