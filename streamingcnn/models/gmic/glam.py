"""GLAM: saliency maps of three scales tell where to segment, a local network segments there at high resolution."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamingcnn.again import recomputed
from streamingcnn.models.gmic.attention import repeated
from streamingcnn.models.gmic.gmic import check_image, cut_out, map_of
from streamingcnn.models.gmic.pooling import count_of, top_mean
from streamingcnn.models.gmic.regions import Regions, find_regions, score_of, to_pixels, window_of
from streamingcnn.models.gmic.trunk import ResNet22
from streamingcnn.models.resnet import BasicBlock, ResNet
from streamingcnn.sources.source import Source

__all__ = ["GLAM", "GLAMResult"]

#: How much each scale counts in the global saliency map, fine to coarse.
SHARES = (0.2, 0.6, 0.2)


class GLAMResult(NamedTuple):
    """What GLAM says of a batch of N images and K crops of each.

    Attributes:
        prediction: (N, classes), the mean of the highest cells over the three scales; a score, not calibrated.
        scales: the saliency maps (N, classes, h, w) of the three scales on the finest grid; `scale_logits` before the
            sigmoid.
        y_scales: (N, 3, classes), the mean of the highest cells of each, and `y_mean`, of the mean of the three.
        y_local: (N, classes), of the crops.
        global_map: (N, classes, h, w), 0.2, 0.6 and 0.2 of the three scales.
        local_maps: (N, K, classes, h', w'), of each crop; `local_logits` before the sigmoid.
        regions, locations, crops: as of :class:`~streamingcnn.models.gmic.GMICResult`.
        size: height and width of the image.
    """

    prediction: Tensor
    scales: tuple[Tensor, Tensor, Tensor]
    scale_logits: tuple[Tensor, Tensor, Tensor]
    y_scales: Tensor
    y_mean: Tensor
    y_local: Tensor
    global_map: Tensor
    local_maps: Tensor
    local_logits: Tensor
    regions: Regions
    locations: Tensor
    crops: Tensor
    size: tuple[int, int]


class GLAM(nn.Module):
    """Segment small objects in large images from labels of whole images.

    >>> from streamingcnn.models.gmic import PyramidLocal
    >>> model = GLAM(crop_shape=(64, 64), local=PyramidLocal()).eval()
    >>> result = model(torch.randn(1, 1, 320, 256))
    >>> result.prediction.shape, result.global_map.shape, model.segmentation(result).shape
    (torch.Size([1, 2]), torch.Size([1, 2, 20, 16]), torch.Size([1, 2, 320, 256]))

    Stream its trunk: ``stream(model, "global_network.downsampling_branch", memory="2GiB")``.

    Args:
        classes: answers per image, each by itself.
        in_channels: of the image.
        crop_shape: height and width of a crop in pixels.
        crops: how many are cut out of each image.
        percent_t: the share of the cells of a map whose mean is its answer.
        local_t: the same for the local maps, over all crops of an image together.
        trunk: a network that gives three maps, fine to coarse, and has ``tap_channels`` and ``out_channels``; None is
            the published ResNet-22 with the results of stages 2, 3 and 4.
        local: from a crop to a fine map, with ``out_channels``; None is the published ResNet-34 that keeps stride 4
            (349 GMAC for a crop of 512 x 512). ``PyramidLocal()`` has the same stride for 20 GMAC.
        overlap: what holds where crops overlap: "max", "mean", or "last" as published.
        recompute: the trunk runs again in the backward pass, as in :class:`~streamingcnn.models.GMIC`.
        reference_crops: crops over the border shifted, as in the published code.
    """

    def __init__(
        self,
        classes: int = 2,
        in_channels: int = 1,
        *,
        crop_shape: tuple[int, int] = (512, 512),
        crops: int = 1,
        percent_t: float = 0.03,
        local_t: float = 0.3,
        trunk: nn.Module | None = None,
        local: nn.Module | None = None,
        overlap: str = "max",
        recompute: bool = False,
        reference_crops: bool = False,
    ) -> None:
        super().__init__()
        if overlap not in ("max", "mean", "last"):
            raise ValueError(f"overlap='{overlap}'; needed is 'max', 'mean' or 'last'")
        self.in_channels, self.crop_shape, self.crops = in_channels, crop_shape, crops
        self.percent_t, self.local_t = percent_t, local_t
        self.overlap, self.reference_crops = overlap, reference_crops
        self.global_network = _Global(classes, trunk or _published_trunk(in_channels), recompute)
        self.detection_network = _Local(classes, local or _published_local(3 if in_channels == 1 else in_channels))

    def forward(self, x: Tensor | Source) -> GLAMResult:
        """Everything but the map at the image's size, which :meth:`segmentation` makes."""
        height, width = check_image(x, self.in_channels, 2)
        scale_logits = self.global_network(x)
        fine, middle, coarse = (torch.sigmoid(each) for each in scale_logits)
        cells = fine.shape[2:]
        count = count_of(cells[0] * cells[1], self.percent_t)
        y_scales = torch.stack([top_mean(each, count) for each in (fine, middle, coarse)], 1)
        global_map = SHARES[0] * fine + SHARES[1] * middle + SHARES[2] * coarse
        window = window_of(self.crop_shape, cells, (height, width))
        regions = find_regions(score_of(global_map), window, self.crops)
        rows, columns = to_pixels(regions.rows, cells[0], height), to_pixels(regions.columns, cells[1], width)
        crops = cut_out(x, rows, columns, self.crop_shape, regions.slices[..., None], fine.dtype, self.reference_crops)[
            :, :, :, 0
        ]
        local_logits = self.detection_network(repeated(crops.flatten(0, 1))).unflatten(0, crops.shape[:2])
        local_maps = torch.sigmoid(local_logits)
        together = local_maps.transpose(1, 2).flatten(2)
        return GLAMResult(
            y_scales.mean(1),
            (fine, middle, coarse),
            scale_logits,
            y_scales,
            top_mean((fine + middle + coarse) / 3, count),
            top_mean(together, count_of(together.shape[2], self.local_t)),
            global_map,
            local_maps,
            local_logits,
            regions,
            torch.stack([rows, columns], 2),
            crops,
            (height, width),
        )

    @torch.no_grad()
    def segmentation(self, result: GLAMResult) -> Tensor:
        """The saliency at the image's size, (N, classes, H, W): the mean of the global map and of the pasted crops.

        Outside all crops the local part is 0, so it is half the global map there.
        """
        whole = F.interpolate(result.global_map.detach(), size=result.size, mode="nearest")
        return (self._pasted(result) + whole) / 2

    def _pasted(self, result: GLAMResult) -> Tensor:
        height, width = result.size
        maps = result.local_maps.detach()
        images, crops, classes = maps.shape[:3]
        canvas = maps.new_zeros(images, classes, height, width)
        covered = maps.new_zeros(images, 1, height, width)
        patches = F.interpolate(maps.flatten(0, 1), size=self.crop_shape, mode="nearest")
        patches = patches.unflatten(0, (images, crops))
        y, x = (torch.arange(size, device=maps.device) for size in (height, width))
        for k in range(crops):
            top, left = result.locations[:, k, 0, None], result.locations[:, k, 1, None]
            # Where the crop's content was shifted, so is what was found in it.
            shift = [
                (start + side - extent).clamp(min=0) if self.reference_crops else torch.zeros_like(start)
                for start, side, extent in zip((top, left), self.crop_shape, result.size, strict=True)
            ]
            in_y, in_x = y - top + shift[0], x - left + shift[1]
            inside_y = (y >= top) & (in_y < self.crop_shape[0])
            inside_x = (x >= left) & (in_x < self.crop_shape[1])
            inside = (inside_y[:, :, None] & inside_x[:, None, :])[:, None]
            if not self.reference_crops:
                inside = inside & result.regions.valid[:, k, None, None, None]
            n = torch.arange(images, device=maps.device)[:, None, None]
            rows = in_y.clamp(0, self.crop_shape[0] - 1)[:, :, None]
            columns = in_x.clamp(0, self.crop_shape[1] - 1)[:, None, :]
            patch = patches[n, k, :, rows, columns].movedim(-1, 1)
            if self.overlap == "last":
                canvas = torch.where(inside, patch, canvas)
            elif self.overlap == "max":
                canvas = torch.where(inside, torch.maximum(canvas, patch), canvas)
            else:
                canvas, covered = canvas + patch * inside, covered + inside
        return canvas / covered.clamp(min=1) if self.overlap == "mean" else canvas


class _Global(nn.Module):
    """The trunk, and a map of logits per class for each of its three maps, all on the finest grid."""

    def __init__(self, classes: int, trunk: nn.Module, recompute: bool) -> None:
        super().__init__()
        self.downsampling_branch, self.recompute = trunk, recompute
        channels: tuple[int, ...] = trunk.tap_channels  # type: ignore[assignment]
        self.postprocess_module = _Scales(classes, (*channels, int(trunk.out_channels)))  # type: ignore[arg-type]

    def forward(self, x: Tensor | Source) -> tuple[Tensor, Tensor, Tensor]:
        maps = recomputed(self.downsampling_branch, x) if self.recompute else self.downsampling_branch(x)
        logits: tuple[Tensor, Tensor, Tensor] = self.postprocess_module(*maps)
        return logits


class _Scales(nn.Module):
    def __init__(self, classes: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.gn_conv_1, self.gn_conv_2, self.gn_conv_last = (
            nn.Conv2d(each, classes, 1, bias=False) for each in channels
        )
        # In the published weights, and used by nothing.
        self.combine = nn.Conv2d(3 * classes, classes, 1, bias=False)

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = map_of(self.gn_conv_1, fine)
        second, last = (
            F.interpolate(map_of(conv, each), size=first.shape[2:], mode="nearest")
            for conv, each in ((self.gn_conv_2, middle), (self.gn_conv_last, coarse))
        )
        return first, second, last


class _Local(nn.Module):
    def __init__(self, classes: int, local: nn.Module) -> None:
        super().__init__()
        self.dn_resnet = local
        self.gn_conv_last = nn.Conv2d(int(local.out_channels), classes, 1, bias=False)  # type: ignore[arg-type]

    def forward(self, crops: Tensor) -> Tensor:
        return map_of(self.gn_conv_last, self.dn_resnet(crops))


def _published_trunk(in_channels: int) -> ResNet22:
    trunk = ResNet22(in_channels, taps=(2, 3))
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_normal_(module.weight)
    return trunk


def _published_local(in_channels: int) -> ResNet:
    return ResNet(BasicBlock, (3, 4, 6, 3), in_channels=in_channels, strides=(1, 1, 1, 1))
