"""GMIC, the globally-aware multiple instance classifier: look at the whole image, then closely at a few places."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from streamingcnn.again import recomputed
from streamingcnn.models.gmic.attention import LooksCloser
from streamingcnn.models.gmic.crops import crop, crop_source
from streamingcnn.models.gmic.pooling import count_of, top_mean
from streamingcnn.models.gmic.regions import Regions, find_regions, score_of, to_pixels, window_of
from streamingcnn.models.gmic.trunk import ResNet22
from streamingcnn.sources.source import Source

__all__ = ["GMIC", "GMICResult", "SaliencyMap", "check_image", "cut_out", "map_of"]


class GMICResult(NamedTuple):
    """What GMIC and GMIC3D say of a batch of N images and K crops of each.

    Attributes:
        prediction: (N, classes), a probability per class.
        logits: of the prediction, (N, classes); None where it is a mean of probabilities.
        y_global: (N, classes), the mean of the saliency map's highest cells.
        y_local: (N, classes), from the crops alone; `local_logits` are its logits.
        saliency: (N, classes, h, w), or with the slices (N, classes, D, h, w); `saliency_logits` before the sigmoid.
        regions: the cells and slices where windows lie, and which of them are valid.
        locations: (N, K, 2), row and column of each crop's upper left pixel.
        crop_slices: (N, K), the slice each crop was taken from; 0 in 2-D.
        crops: (N, K, C, height, width), or (N, K, C, S, height, width) of several slices.
        attention: (N, K), how much each crop counts.
    """

    prediction: Tensor
    logits: Tensor | None
    y_global: Tensor
    y_local: Tensor
    local_logits: Tensor
    saliency: Tensor
    saliency_logits: Tensor
    regions: Regions
    locations: Tensor
    crop_slices: Tensor
    crops: Tensor
    attention: Tensor


class SaliencyMap(nn.Module):
    """A logit per class and cell, without bias; under autocast too in the weight's own dtype.

    Cells are compared with each other: in bfloat16 the highest would be equal more often than not.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.gn_conv_last = nn.Conv2d(channels, classes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return map_of(self.gn_conv_last, x)


def map_of(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The logits of a 1x1 convolution, which autocast leaves as they are.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     map_of(nn.Conv2d(4, 2, 1), torch.zeros(1, 4, 3, 3, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    kind = x.device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        logits: Tensor = layer(x)
        return logits
    with torch.autocast(kind, enabled=False):
        logits = layer(x.to(layer.weight.dtype))
        return logits


class GMIC(LooksCloser):
    """Find small objects in large images from labels of whole images.

    >>> model = GMIC(crop_shape=(64, 64), crops=2).eval()
    >>> result = model(torch.randn(1, 1, 320, 256))
    >>> result.prediction.shape, result.saliency.shape, result.crops.shape
    (torch.Size([1, 2]), torch.Size([1, 2, 5, 4]), torch.Size([1, 2, 1, 64, 64]))

    Stream its trunk: ``streamingcnn.stream(model, "ds_net", memory="2GiB")``; ``model(source)`` then reads the trunk's
    tiles and the crops' boxes out of a source.

    Args:
        classes: answers per image, each a probability by itself.
        in_channels: of the image.
        crop_shape: height and width of a crop in pixels.
        crops: how many are cut out of each image.
        percent_t: the share of the saliency map's cells whose mean is the global answer; 0.02 is 2 %.
        trunk: a network with ``out_channels`` from the image to one map; None is the published ResNet-22.
        local: a network with ``out_channels`` from a crop to a map; None is ResNet-18. A crop of one channel is
            repeated to the three that ResNet-18 has.
        recompute: the trunk runs again in the backward pass, so that nothing of it lives while the crops are looked at.
            The same numbers for the memory of the trunk or of the crops, whichever is more, and for one more forward
            pass of the trunk.
        reference_crops: crops over the border shifted, and windows of no score counted, as in the published code.

    The input is (N, in_channels, H, W) of any size from which the trunk makes a map, or a source. Names and shapes of
    the parameters are those of the published weights, which load with ``load_state_dict(state, strict=True)``.
    """

    def __init__(
        self,
        classes: int = 2,
        in_channels: int = 1,
        *,
        crop_shape: tuple[int, int] = (256, 256),
        crops: int = 6,
        percent_t: float = 0.02,
        trunk: nn.Module | None = None,
        local: nn.Module | None = None,
        recompute: bool = False,
        reference_crops: bool = False,
    ) -> None:
        super().__init__(classes, in_channels, local)
        self.in_channels, self.crop_shape, self.crops = in_channels, crop_shape, crops
        self.percent_t, self.recompute, self.reference_crops = percent_t, recompute, reference_crops
        self.ds_net = trunk or ResNet22(in_channels)
        channels = int(self.ds_net.out_channels)  # type: ignore[arg-type]
        self.left_postprocess_net = SaliencyMap(channels, classes)
        self.fusion_dnn = nn.Linear(channels + self.classifier_linear.in_features, classes)

    def forward(self, x: Tensor | Source) -> GMICResult:
        """The answer and all that it was made from; see :class:`GMICResult`."""
        height, width = check_image(x, self.in_channels, 2)
        features = recomputed(self.ds_net, x) if self.recompute else self.ds_net(x)
        logits = self.left_postprocess_net(features)
        saliency = torch.sigmoid(logits)
        cells = saliency.shape[2:]
        y_global = top_mean(saliency, count_of(cells[0] * cells[1], self.percent_t))
        window = window_of(self.crop_shape, cells, (height, width))
        regions = find_regions(score_of(saliency), window, self.crops)
        rows, columns = to_pixels(regions.rows, cells[0], height), to_pixels(regions.columns, cells[1], width)
        crops = cut_out(
            x, rows, columns, self.crop_shape, regions.slices[..., None], saliency.dtype, self.reference_crops
        )[:, :, :, 0]
        counted = torch.ones_like(regions.valid) if self.reference_crops else regions.valid
        z, attention = self.look_closer(crops, counted)
        local_logits = self.classifier_linear(z)
        fused = self.fusion_dnn(torch.cat([features.amax((2, 3)), z], 1))
        return GMICResult(
            torch.sigmoid(fused),
            fused,
            y_global,
            torch.sigmoid(local_logits),
            local_logits,
            saliency,
            logits,
            regions,
            torch.stack([rows, columns], 2),
            regions.slices,
            crops,
            attention,
        )


def cut_out(
    x: Tensor | Source,
    rows: Tensor,
    columns: Tensor,
    size: tuple[int, int],
    slices: Tensor,
    dtype: torch.dtype,
    reference: bool,
) -> Tensor:
    """Crops (N, K, C, S, height, width) of an image, a volume or a source of one; no gradient passes through them."""
    if not isinstance(x, Tensor):
        return crop_source(x, rows, columns, size, slices, dtype=dtype, reference=reference)
    volume = x.detach() if x.dim() == 5 else x.detach()[:, :, None]
    return crop(volume, rows, columns, size, slices, reference=reference)


def check_image(x: Tensor | Source, channels: int, space: int) -> tuple[int, int]:
    """Height and width of an image or volume; ValueError, with what is needed, where it is none.

    >>> check_image(torch.zeros(1, 1, 64, 48), 1, 2)
    (64, 48)
    """
    shape = tuple(x.shape)
    if not isinstance(x, Tensor) and not x.axes.startswith("N"):
        shape = (1, *shape)
    wanted = "(images, channels, height, width)" if space == 2 else "(images, channels, slices, height, width)"
    if len(shape) != space + 2:
        raise ValueError(f"the input has the shape {shape}; needed is {wanted}")
    if shape[1] != channels:
        raise ValueError(
            f"the input has {shape[1]} channels, and this network was made for {channels}; give in_channels={shape[1]},"
            " or an image of the channels it has"
        )
    if min(shape[-2:]) < 7:
        raise ValueError(f"the input has {shape[-2]} x {shape[-1]} pixels; needed are 7 x 7 at least")
    return shape[-2], shape[-1]
