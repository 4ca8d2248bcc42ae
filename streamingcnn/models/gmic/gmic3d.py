"""3D-GMIC: the slices of a volume through the 2-D trunk; cells and windows are compared over all of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streamingcnn.models.gmic.attention import LooksCloser
from streamingcnn.models.gmic.depth import by_slices
from streamingcnn.models.gmic.gmic import GMICResult, SaliencyMap, check_image, cut_out
from streamingcnn.models.gmic.pooling import count_of, top_mean
from streamingcnn.models.gmic.regions import find_regions, score_of, to_pixels, window_of
from streamingcnn.models.gmic.trunk import ResNet22, group_norm
from streamingcnn.sources.source import Source

__all__ = ["GMIC3D"]


class GMIC3D(LooksCloser):
    """Find small objects in volumes of many large slices, from labels of whole volumes.

    >>> model = GMIC3D(crop_shape=(64, 64), crops=2, apart=1).eval()
    >>> result = model(torch.randn(1, 1, 3, 320, 256))
    >>> result.prediction.shape, result.saliency.shape, result.crops.shape
    (torch.Size([1, 2]), torch.Size([1, 2, 3, 5, 4]), torch.Size([1, 2, 1, 64, 64]))

    Nothing is convolved across slices. They go through the trunk ``slices_at_once`` at a time, and again in the
    backward pass, so that a volume takes the memory of one; ``streamingcnn.stream(model, "ds_net")`` streams each.

    Args:
        classes: answers per volume, each a probability by itself.
        in_channels: of the volume.
        crop_shape: height and width of a crop in pixels.
        crops: how many are cut out of each volume.
        percent_t: the highest cells of the whole volume whose mean is the global answer, as a share of the cells of
            ONE slice; it may be above 1.
        activation: of the saliency map: "tanh" is relu(tanh(.)), with exact zeros, as published; or "sigmoid".
        apart: slices on either side of a window where its cells are taken as well.
        slices_at_once: how many go through the trunk together. None: all, with a graph that holds everything.
        crop_slices: slices of a crop and of a window, odd; more than 1 needs a ``local`` network in 3-D.
        fusion: "mean" of the global and local answer, as published, or "learned": a linear layer, as in GMIC.
        trunk: a 2-D network with ``out_channels``; None is the published ResNet-22 with group norm.
        local: from a crop to a map, with ``out_channels``; None is ResNet-18.
        reference_crops: crops over the border shifted, and windows of no score counted, as in the published code.

    In training the crop is taken from a slice drawn out of those that its window took (torch's generator), in
    evaluation from the window's own. The input is (N, in_channels, D, H, W), or a source of axes ``CZYX``.
    """

    def __init__(
        self,
        classes: int = 2,
        in_channels: int = 1,
        *,
        crop_shape: tuple[int, int] = (256, 256),
        crops: int = 12,
        percent_t: float = 1.511,
        activation: str = "tanh",
        apart: int = 10,
        slices_at_once: int | None = 1,
        crop_slices: int = 1,
        fusion: str = "mean",
        trunk: nn.Module | None = None,
        local: nn.Module | None = None,
        reference_crops: bool = False,
    ) -> None:
        if activation not in ("tanh", "sigmoid") or fusion not in ("mean", "learned"):
            raise ValueError(
                f"activation='{activation}', fusion='{fusion}': the activation is 'tanh' or 'sigmoid', the fusion "
                "'mean' or 'learned'"
            )
        if crop_slices % 2 == 0 or crop_slices < 1 or (crop_slices > 1 and local is None):
            raise ValueError(
                f"crop_slices={crop_slices}; needed is an odd number, and above 1 a local network in 3-D, such as "
                "local=VolumeNet()"
            )
        super().__init__(classes, in_channels, local)
        self.in_channels, self.crop_shape, self.crops, self.percent_t = in_channels, crop_shape, crops, percent_t
        self.activation, self.apart, self.slices_at_once = activation, apart, slices_at_once
        self.crop_slices, self.reference_crops = crop_slices, reference_crops
        self.ds_net = trunk or ResNet22(in_channels, norm=group_norm)
        channels = int(self.ds_net.out_channels)  # type: ignore[arg-type]
        self.left_postprocess_net = SaliencyMap(channels, classes)
        if fusion == "learned":
            self.fusion_dnn = nn.Linear(channels + self.classifier_linear.in_features, classes)
        self.fusion = fusion

    def forward(self, x: Tensor | Source) -> GMICResult:
        """The answer and all that it was made from; see :class:`GMICResult`."""
        height, width = check_image(x, self.in_channels, 3)
        features = by_slices(self.ds_net, x, self.slices_at_once)
        images, depth = features.shape[:2]
        logits = self.left_postprocess_net(features.flatten(0, 1)).unflatten(0, (images, depth)).transpose(1, 2)
        saliency = torch.relu(torch.tanh(logits)) if self.activation == "tanh" else torch.sigmoid(logits)
        cells = saliency.shape[3:]
        y_global = top_mean(saliency, count_of(cells[0] * cells[1], self.percent_t))
        window = window_of(self.crop_shape, cells, (height, width))
        regions = find_regions(score_of(saliency), window, self.crops, thickness=self.crop_slices, apart=self.apart)
        rows, columns = to_pixels(regions.rows, cells[0], height), to_pixels(regions.columns, cells[1], width)
        chosen = self._drawn(regions.slices, depth) if self.training else regions.slices
        beside = torch.arange(self.crop_slices, device=chosen.device) - self.crop_slices // 2
        slices = (chosen[..., None] + beside).clamp(0, depth - 1)
        crops = cut_out(x, rows, columns, self.crop_shape, slices, saliency.dtype, self.reference_crops)
        crops = crops if self.crop_slices > 1 else crops[:, :, :, 0]
        counted = torch.ones_like(regions.valid) if self.reference_crops else regions.valid
        z, attention = self.look_closer(crops, counted)
        local_logits = self.classifier_linear(z)
        y_local = torch.sigmoid(local_logits)
        fused = self.fusion_dnn(torch.cat([features.amax((1, 3, 4)), z], 1)) if self.fusion == "learned" else None
        return GMICResult(
            (y_global + y_local) / 2 if fused is None else torch.sigmoid(fused),
            fused,
            y_global,
            y_local,
            local_logits,
            saliency,
            logits,
            regions,
            torch.stack([rows, columns], 2),
            chosen,
            crops,
            attention,
        )

    def _drawn(self, winners: Tensor, depth: int) -> Tensor:
        """A slice out of those that each window took, each as likely as the others."""
        low, high = (winners - self.apart).clamp(min=0), (winners + self.apart).clamp(max=depth - 1)
        share = torch.rand(winners.shape, device=winners.device)
        return torch.minimum(low + (share * (high - low + 1)).long(), high)
