"""The table of networks that must stream exactly: one row each, in groups, with what the group is about.

A row is a name, a function that builds a plain module, the shape (C, *space) of an image, and what it takes
to be tested: tilings, further inputs. Sizes are odd wherever the network allows. A row that once failed
stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from monai.losses.dice import DiceCELoss, DiceLoss, GeneralizedDiceLoss
from monai.losses.tversky import TverskyLoss
from monai.networks.nets.basic_unet import BasicUNet
from monai.networks.nets.densenet import DenseNet121
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.unet import UNet
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from tests.blocks import (
    AttentionGate,
    Bottleneck,
    ConvNeXt,
    Dense,
    EncoderDecoder,
    Inception,
    InvertedResidual,
    Net,
    Residual,
    ShuffleUnit,
    SqueezeExcite,
    StandardisedConv,
    StochasticDepth,
)

Tile = int | tuple[int, ...]

LINE, PLANE, VOLUME = (3, 61), (3, 37, 45), (2, 15, 18, 13)

# Per number of axes: smaller than most receptive fields, unequal sides, and a few tiles only.
TILES: dict[int, tuple[Tile, ...]] = {1: (4, 13, 32), 2: (8, (16, 11), 28), 3: (6, (9, 5, 16), 10)}


@dataclass(frozen=True)
class Network:
    """One row of the table."""

    name: str
    build: Callable[[], nn.Module]
    image: tuple[int, ...] = PLANE
    tiles: tuple[Tile, ...] = ()
    train: bool = True
    #: Further inputs, given the batch size: tensors in float64, by name.
    more: Callable[[int], dict[str, Any]] = lambda batch: {}
    #: Slow to capture: batch 1 and 3 share out the three tilings instead of taking each.
    large: bool = False

    def make(self) -> nn.Module:
        """Build it in float64, with nothing left at a value (0 or 1) that would hide a mistake."""
        module = self.build().double().train(self.train)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name.endswith("bias") or bool((parameter == parameter.flatten()[0]).all()):
                    parameter.copy_(torch.rand_like(parameter) + 0.5)
            for name, buffer in module.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    buffer.copy_(torch.rand_like(buffer) + 0.5)
        return module

    def inputs(self, batch: int) -> tuple[Tensor, dict[str, Any]]:
        """Give the image, normal random numbers without ties, and the further inputs."""
        return torch.randn(batch, *self.image, dtype=torch.float64), self.more(batch)

    def cases(self) -> list[tuple[int, Tile]]:
        """List the (batch, tile) pairs to run."""
        tiles = self.tiles or TILES[len(self.image) - 1]
        if self.large:
            return [(1 + 2 * (i % 2), tile) for i, tile in enumerate(tiles)]
        return [(batch, tile) for batch in (1, 3) for tile in tiles]


def rows(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(*modules)


def between(layer: Callable[[], nn.Module], channels: int = 4) -> Callable[[], nn.Module]:
    """Put a layer between two convolutions, so that its own gradient and the one through it are tested."""
    return lambda: rows(nn.Conv2d(3, 4, 3, padding=1), layer(), nn.Conv2d(channels, 2, 3, padding=1))


def resized(**how: Any) -> Callable[[], nn.Module]:
    return between(lambda: Net(lambda net, x: F.interpolate(x, **how)))


def padded(*amounts: int, **how: Any) -> Callable[[], nn.Module]:
    return between(lambda: Net(lambda net, x: F.pad(x, amounts, **how)))


def conv_padded(mode: Literal["reflect", "replicate", "circular"]) -> Callable[[], nn.Module]:
    return lambda: rows(
        nn.Conv2d(3, 4, 5, padding=(2, 1), padding_mode=mode),
        nn.Tanh(),
        nn.Conv2d(4, 2, 3, stride=2, padding=3, padding_mode=mode),
    )


def tied() -> nn.Module:
    first, second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    second.weight = first.weight
    return rows(first, nn.Tanh(), second)


def frozen() -> nn.Module:
    module = rows(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 3))
    module[0].requires_grad_(False)
    module[1].requires_grad_(False).eval()
    module.get_parameter("3.bias").requires_grad_(False)
    return module


def coordinates(net: Net, x: Tensor) -> Tensor:
    """CoordConv: two channels that say where a pixel is."""
    ys = torch.linspace(-1, 1, x.shape[2], dtype=x.dtype, device=x.device)
    xs = torch.linspace(0, 1, x.shape[3], dtype=x.dtype, device=x.device)
    grid = torch.stack(torch.meshgrid(ys, xs, indexing="ij"))
    return net.conv(torch.cat([x, grid.expand(x.shape[0], -1, -1, -1)], 1))


def positions(net: Net, x: Tensor) -> Tensor:
    """Pixel numbers made with arange, multiplied into the map."""
    columns = torch.arange(x.shape[-1], dtype=x.dtype, device=x.device)
    return net.conv(x) * torch.cos(columns / 7)


def no_grad_branch(net: Net, x: Tensor) -> Tensor:
    """A weight map that takes no gradient, computed from the features."""
    features = net.a(x)
    with torch.no_grad():
        weight = torch.sigmoid(net.b(features))
    return net.c(features * weight)


def own_autocast(net: Net, x: Tensor) -> Tensor:
    """A block that switches autocast off around itself."""
    with torch.autocast("cpu", enabled=False):
        x = net.a(x)
    return net.b(torch.tanh(x))


def mask_weighted(net: Net, x: Tensor, *, gate: Tensor, mask: Tensor) -> Tensor:
    """One side input without space (a gate per channel), and one with the image's own axes."""
    return net.b(torch.tanh(net.a(x) * gate[:, :, None, None]) * mask)


def pyramid(net: Net, x: Tensor) -> dict[str, Any]:
    """Results at three scales, in nested containers."""
    fine = torch.tanh(net.a(x))
    middle = torch.tanh(net.b(fine))
    coarse = net.c(middle)
    return {"maps": [fine, (middle, coarse)], "score": coarse.mean((2, 3))}


def attention(net: Net, x: Tensor) -> Tensor:
    """Self-attention over all pixels of a coarse map, as in a transformer's stage."""
    features = net.down(x)
    tokens = features.flatten(2).transpose(1, 2)
    tokens = tokens + net.attend(tokens, tokens, tokens, need_weights=False)[0]
    return net.out(tokens.transpose(1, 2).reshape(features.shape))


def fourier(net: Net, x: Tensor) -> Tensor:
    """A layer of a Fourier neural operator: a low-pass filter of the whole map."""
    spectrum = torch.fft.rfft2(net.a(x))
    return net.b(torch.fft.irfft2(spectrum * net.gain, s=x.shape[2:]))


def transformer(net: Net, x: Tensor) -> Tensor:
    """A spatial transformer: where a pixel comes from depends on the whole image."""
    theta = net.fc(x.mean((2, 3))).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return net.conv(F.grid_sample(net.first(x), grid, align_corners=False))


def loss_inside(net: Net, x: Tensor, *, target: Tensor) -> Tensor:
    """Network and loss in one: a scalar comes out, and the logits never exist as a whole."""
    logits = net.b(torch.tanh(net.a(x)))
    return F.mse_loss(logits, target) + 0.1 * logits.abs().mean() + logits.square().sum() / logits.numel()


def with_loss(
    loss: Callable[..., Tensor], image: tuple[int, ...] = PLANE, classes: int | None = 3
) -> tuple[Callable[[], nn.Module], tuple[int, ...], Callable[[int], dict[str, Any]]]:
    """A small network with a loss inside, and its target: classes (N, *space), or a map like the logits."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(image) - 2]

    def forward(net: Net, x: Tensor, *, target: Tensor) -> Tensor:
        return loss(net.b(torch.tanh(net.a(x))), target, net.weight.detach())

    def build() -> nn.Module:
        weight = nn.Parameter(torch.tensor([0.5, 1.0, 3.0]))
        return Net(forward, a=conv(image[0], 4, 3, padding=1), b=conv(4, 3, 3, padding=1), weight=weight)

    def target(batch: int) -> dict[str, Any]:
        if classes is None:
            return {"target": torch.rand(batch, 3, *image[1:], dtype=torch.float64)}
        return {"target": torch.randint(0, classes, (batch, *image[1:]))}

    return build, image, target


def one_hot(target: Tensor, like: Tensor) -> Tensor:
    return F.one_hot(target, 3).movedim(-1, 1).to(like.dtype)


def dice(p: Tensor, g: Tensor, over: tuple[int, ...]) -> Tensor:
    """Soft Dice as people write it, of probabilities and a one-hot target."""
    return 1 - ((2 * (p * g).sum(over) + 1) / (p.sum(over) + g.sum(over) + 1)).mean()


def dice_and_entropy(x: Tensor, t: Tensor, w: Tensor) -> Tensor:
    over = (0, *range(2, x.dim()))
    return 0.2 * dice(x.softmax(1), one_hot(t, x), over) + 0.8 * F.cross_entropy(x, t, w)


def masked_mean(x: Tensor, t: Tensor, w: Tensor) -> Tensor:
    mask = t != 2
    return (F.cross_entropy(x, t, reduction="none") * mask).sum() / mask.sum()


def scattered(x: Tensor, t: Tensor, w: Tensor) -> Tensor:
    hot = torch.zeros_like(x).scatter_(1, t[:, None], 1.0)
    own = torch.gather(x.log_softmax(1), 1, t[:, None])
    return (x.softmax(1) - hot).square().mean() - (own * w[t][:, None]).sum() / t.numel()


#: Losses inside the wrapped module, name -> (loss of logits, target and class weights; image; classes or None).
LOSSES: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], int | None]] = {
    "entropy": (lambda x, t, w: F.cross_entropy(x, t), PLANE, 3),
    "entropy_1d": (lambda x, t, w: F.cross_entropy(x, t, w), LINE, 3),
    "entropy_3d": (lambda x, t, w: F.cross_entropy(x, t, w, ignore_index=1), VOLUME, 3),
    "entropy_smoothed": (lambda x, t, w: F.cross_entropy(x, t, w, ignore_index=0, label_smoothing=0.1), PLANE, 3),
    "entropy_sum": (lambda x, t, w: F.cross_entropy(x, t, w, reduction="sum"), PLANE, 3),
    "entropy_each": (lambda x, t, w: F.cross_entropy(x, t, w, reduction="none"), PLANE, 3),
    "entropy_of_probabilities": (lambda x, t, w: F.cross_entropy(x, t, w, label_smoothing=0.2), PLANE, None),
    "entropy_flattened": (
        lambda x, t, w: F.cross_entropy(x.permute(0, 2, 3, 1).reshape(-1, 3), t.view(-1), w, ignore_index=2),
        PLANE,
        3,
    ),
    "likelihood": (lambda x, t, w: F.nll_loss(x.log_softmax(1), t, w), PLANE, 3),
    "binary": (lambda x, t, w: F.binary_cross_entropy(x.sigmoid(), t, w[:, None, None].expand_as(x)), PLANE, None),
    "binary_logits": (
        lambda x, t, w: F.binary_cross_entropy_with_logits(x, t, pos_weight=w[:, None, None]),
        PLANE,
        None,
    ),
    "binary_logits_3d": (
        lambda x, t, w: F.binary_cross_entropy_with_logits(x, t, w[:, None, None, None], reduction="sum"),
        VOLUME,
        None,
    ),
    "binary_logits_flat": (lambda x, t, w: F.binary_cross_entropy_with_logits(x.flatten(), t.flatten()), PLANE, None),
    "squares": (lambda x, t, w: F.mse_loss(x, t), PLANE, None),
    "squares_each": (lambda x, t, w: F.mse_loss(x, t, reduction="none"), PLANE, None),
    "distances": (lambda x, t, w: F.l1_loss(x, t, reduction="sum"), VOLUME, None),
    "smooth_distances": (lambda x, t, w: F.smooth_l1_loss(x, t, beta=0.3), PLANE, None),
    "huber": (lambda x, t, w: F.huber_loss(x, t, delta=0.4), PLANE, None),
    "divergence": (lambda x, t, w: F.kl_div(x.log_softmax(1), t, reduction="batchmean"), PLANE, None),
    "dice": (lambda x, t, w: dice(x.softmax(1), one_hot(t, x), (2, 3)), PLANE, 3),
    "dice_of_batch_3d": (lambda x, t, w: dice(x.softmax(1), one_hot(t, x), (0, 2, 3, 4)), VOLUME, 3),
    "dice_flattened": (lambda x, t, w: dice(x.sigmoid().flatten(1), t.flatten(1), (1,)), PLANE, None),
    "dice_of_one": (
        lambda x, t, w: dice(x[:, 1].sigmoid().reshape(-1), (t == 1).to(x.dtype).reshape(-1), (0,)),
        PLANE,
        3,
    ),
    "dice_and_entropy": (dice_and_entropy, PLANE, 3),
    "dice_and_entropy_3d": (dice_and_entropy, VOLUME, 3),
    "masked_mean": (masked_mean, PLANE, 3),
    "scattered": (scattered, PLANE, 3),
    "monai_dice": (
        lambda x, t, w: DiceLoss(softmax=True, to_onehot_y=True)(x, t[:, None]),
        PLANE,
        3,
    ),
    "monai_dice_squared": (
        lambda x, t, w: DiceLoss(sigmoid=True, squared_pred=True, batch=True)(x, t),
        VOLUME,
        None,
    ),
    "monai_dice_entropy": (
        lambda x, t, w: DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)(x, t[:, None]),
        VOLUME,
        3,
    ),
    "monai_tversky": (
        lambda x, t, w: TverskyLoss(softmax=True, to_onehot_y=True)(x, t[:, None]),
        PLANE,
        3,
    ),
    "monai_generalized_dice": (
        lambda x, t, w: GeneralizedDiceLoss(softmax=True, to_onehot_y=True)(x, t[:, None]),
        PLANE,
        3,
    ),
}


def conv_relu(channels: int, out: int, kernel: int, **options: Any) -> nn.Module:
    return rows(nn.Conv2d(channels, out, kernel, **options), nn.ReLU())


def whole(head: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Put a head over a small trunk."""
    return lambda: rows(
        nn.Conv2d(3, 6, 3, 2, 1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        head(),
    )


NETWORKS = [
    # Plain: the sizes only shrink or stay.
    Network(
        "plain_1d",
        lambda: rows(nn.Conv1d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, 4, 5, padding=2), nn.GELU()),
        LINE,
        tiles=(1, 5, 24),
    ),
    Network(
        "plain_2d",
        lambda: rows(conv_relu(3, 5, 3, padding=1), conv_relu(5, 5, 5, padding=2), nn.Conv2d(5, 2, 1)),
    ),
    Network(
        "plain_3d",
        lambda: rows(nn.Conv3d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 2, (1, 3, 5), padding=(0, 1, 2))),
        VOLUME,
    ),
    Network("valid", lambda: rows(conv_relu(3, 4, 3), conv_relu(4, 4, 5), nn.Conv2d(4, 2, 3))),
    Network("wide_padding", lambda: rows(nn.Conv2d(3, 4, 3, padding=9), nn.Tanh(), nn.Conv2d(4, 2, 3, 2, 6))),
    # Strided: a tile of the input is a fraction of a pixel further on.
    Network(
        "strided",
        lambda: rows(*(conv_relu(i, 4, 3, stride=2, padding=1) for i in (3, 4)), nn.Conv2d(4, 2, 3)),
    ),
    Network(
        "stride_beyond_kernel",
        lambda: rows(nn.Conv2d(3, 4, 2, stride=3), nn.Tanh(), nn.Conv2d(4, 4, 1, stride=2, padding=1)),
    ),
    Network(
        "asymmetric",
        lambda: rows(
            nn.Conv2d(3, 4, (5, 3), stride=(2, 1), padding=(0, 2)),
            nn.Tanh(),
            nn.Conv2d(4, 4, (1, 7), padding=(0, 3)),
            nn.Tanh(),
            nn.Conv2d(4, 2, (4, 1), stride=(1, 3), padding=(1, 0)),
        ),
    ),
    Network(
        "stem",
        lambda: rows(nn.Conv2d(3, 4, 7, 2, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
        train=False,
    ),
    # Dilated, grouped, even kernels, 'same': other windows, one formula.
    Network(
        "dilated",
        lambda: rows(
            nn.Conv2d(3, 4, 3, padding=2, dilation=2),
            nn.Tanh(),
            nn.Conv2d(4, 4, 3, padding=(1, 4), dilation=(3, 4)),
            nn.Tanh(),
            nn.Conv2d(4, 2, 3, stride=2, dilation=2, padding=1),
        ),
    ),
    Network(
        "grouped",
        lambda: rows(
            nn.Conv2d(3, 6, 3, padding=1, groups=3),
            nn.Tanh(),
            nn.Conv2d(6, 4, 3, stride=2, padding=1, groups=2),
            nn.Conv2d(4, 4, 5, padding=2, groups=4),
        ),
    ),
    Network(
        "even_kernels",
        lambda: rows(
            nn.Conv2d(3, 4, 4, stride=2, padding=1),
            nn.Tanh(),
            nn.Conv2d(4, 4, 2),
            nn.Tanh(),
            nn.Conv2d(4, 2, 6, padding=3),
        ),
    ),
    Network(
        "same",
        lambda: rows(
            nn.Conv2d(3, 4, (4, 3), padding="same"),
            nn.Tanh(),
            nn.Conv2d(4, 4, (3, 2), padding="same", dilation=(2, 3)),
            nn.Tanh(),
            nn.Conv2d(4, 2, 3, padding="valid"),
        ),
    ),
    # Padding modes of convolutions, and pads as layers; a tile at the border looks back into the image.
    Network("conv_reflect", conv_padded("reflect")),
    Network("conv_replicate", conv_padded("replicate")),
    Network("conv_circular", conv_padded("circular")),
    Network(
        "conv_circular_1d_same",
        lambda: rows(nn.Conv1d(3, 4, 4, padding="same", padding_mode="circular"), nn.Tanh(), nn.Conv1d(4, 2, 3)),
        LINE,
    ),
    Network(
        "conv_reflect_3d",
        lambda: rows(nn.Conv3d(2, 3, 3, padding=1, padding_mode="reflect"), nn.Tanh(), nn.Conv3d(3, 2, 3)),
        VOLUME,
    ),
    Network("pad_reflect", padded(3, 1, 0, 2, mode="reflect")),
    Network("pad_replicate", padded(4, 2, 1, 0, mode="replicate")),
    Network("pad_circular", padded(2, 5, 3, 1, mode="circular")),
    Network("pad_constant", padded(1, 4, 0, 11, value=1.5)),
    Network("pad_negative", padded(-2, 1, 3, -4)),
    Network(
        "pad_zero_then_pool",
        lambda: rows(nn.ZeroPad2d((0, 1, 1, 0)), nn.Conv2d(3, 4, 3), nn.ReflectionPad2d(2), nn.AvgPool2d(3, 2)),
    ),
    # Pools, with every option.
    Network("max_pool", between(lambda: nn.MaxPool2d(3, stride=2, padding=1))),
    Network("max_pool_ceil", between(lambda: nn.MaxPool2d((3, 2), stride=(2, 3), ceil_mode=True))),
    Network("max_pool_dilated", between(lambda: nn.MaxPool2d(3, stride=2, padding=1, dilation=3, ceil_mode=True))),
    Network("avg_pool", between(lambda: nn.AvgPool2d(3, stride=2, padding=1))),
    Network("avg_pool_ceil", between(lambda: nn.AvgPool2d(4, stride=3, padding=2, ceil_mode=True))),
    Network(
        "avg_pool_true_count",
        between(lambda: nn.AvgPool2d((3, 5), stride=(2, 3), padding=(1, 2), count_include_pad=False)),
    ),
    Network(
        "avg_pool_true_count_ceil",
        between(lambda: nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True, count_include_pad=False)),
    ),
    Network("avg_pool_divisor", between(lambda: nn.AvgPool2d(3, stride=1, divisor_override=4))),
    Network(
        "pools_1d",
        lambda: rows(nn.Conv1d(3, 4, 3), nn.MaxPool1d(3, 2, ceil_mode=True), nn.Conv1d(4, 4, 3), nn.AvgPool1d(2, 1, 1)),
        LINE,
    ),
    Network(
        "pools_3d",
        lambda: rows(
            nn.Conv3d(2, 3, 3, padding=1),
            nn.MaxPool3d((1, 2, 3), stride=(1, 2, 1), padding=(0, 1, 1)),
            nn.Conv3d(3, 3, 3, padding=1),
            nn.AvgPool3d(2, ceil_mode=True, count_include_pad=False),
        ),
        VOLUME,
    ),
    # Transposed convolutions.
    Network(
        "transposed",
        lambda: rows(
            nn.Conv2d(3, 4, 3, 2, 1),
            nn.Tanh(),
            nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1),
            nn.Tanh(),
            nn.ConvTranspose2d(4, 2, (4, 2), stride=(3, 2), padding=(1, 0), output_padding=(2, 1)),
        ),
    ),
    Network(
        "transposed_grouped_dilated",
        lambda: rows(
            nn.Conv2d(3, 4, 3),
            nn.ConvTranspose2d(4, 6, 3, groups=2, dilation=2, stride=2, padding=3, bias=False),
            nn.Tanh(),
            nn.ConvTranspose2d(6, 2, 1, stride=2),
        ),
    ),
    Network(
        "transposed_1d",
        lambda: rows(nn.Conv1d(3, 4, 3, 2), nn.Tanh(), nn.ConvTranspose1d(4, 2, 5, 3, 2, output_padding=1)),
        LINE,
    ),
    Network(
        "transposed_3d",
        lambda: rows(nn.Conv3d(2, 3, 3, 2, 1), nn.Tanh(), nn.ConvTranspose3d(3, 2, 3, 2, 1, output_padding=1)),
        VOLUME,
    ),
    # Interpolation: ATen's own arithmetic, at scales that are no whole numbers too.
    Network("nearest", resized(scale_factor=2)),
    Network("nearest_fraction", resized(scale_factor=(1.7, 0.6))),
    Network("nearest_size", resized(size=(53, 31))),
    Network("nearest_exact", resized(size=(50, 22), mode="nearest-exact")),
    Network("nearest_exact_fraction", resized(scale_factor=1.3, mode="nearest-exact")),
    Network("bilinear", resized(scale_factor=2, mode="bilinear")),
    Network("bilinear_fraction", resized(scale_factor=(1.7, 0.6), mode="bilinear")),
    Network("bilinear_recomputed", resized(scale_factor=1.37, mode="bilinear", recompute_scale_factor=True)),
    Network("bilinear_size", resized(size=(64, 20), mode="bilinear")),
    Network("bilinear_corners", resized(scale_factor=1.5, mode="bilinear", align_corners=True)),
    Network("bilinear_corners_size", resized(size=(19, 71), mode="bilinear", align_corners=True)),
    Network("bicubic", resized(scale_factor=1.6, mode="bicubic")),
    Network("bicubic_corners", resized(size=(51, 30), mode="bicubic", align_corners=True)),
    Network(
        "linear_1d",
        lambda: rows(nn.Conv1d(3, 4, 3), nn.Upsample(scale_factor=2.5, mode="linear"), nn.Conv1d(4, 2, 3)),
        LINE,
    ),
    Network(
        "trilinear",
        lambda: rows(
            nn.Conv3d(2, 3, 3, 2, 1),
            nn.Upsample(scale_factor=(2, 1.5, 3), mode="trilinear"),
            nn.Conv3d(3, 2, 3, padding=1),
            nn.Upsample(size=(9, 14, 11), mode="trilinear", align_corners=True),
        ),
        VOLUME,
    ),
    Network(
        "nearest_3d",
        lambda: rows(nn.Conv3d(2, 3, 3, 2), nn.Upsample(scale_factor=2), nn.Conv3d(3, 2, 3)),
        VOLUME,
    ),
    # Space into channels and back.
    Network("pixel_shuffle", between(lambda: rows(nn.Conv2d(4, 27, 1), nn.PixelShuffle(3)), channels=3)),
    Network("pixel_unshuffle", between(lambda: nn.PixelUnshuffle(2), channels=16), (3, 38, 46)),
    # Pointwise: activations with and without parameters, in place and not; over channels; arithmetic.
    Network(
        "activations",
        lambda: rows(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.SiLU(inplace=True),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.ELU(inplace=True),
            nn.Hardswish(),
            nn.Softplus(),
            nn.Mish(),
            nn.LeakyReLU(0.2, inplace=True),
            nn.ReLU6(),
            nn.Conv2d(4, 2, 1),
            nn.Sigmoid(),
        ),
    ),
    Network("prelu", between(lambda: rows(nn.PReLU(4), nn.Conv2d(4, 4, 3), nn.PReLU()))),
    Network("glu", between(lambda: nn.GLU(1), channels=2)),
    Network("softmax_of_channels", between(lambda: nn.Softmax(1))),
    Network("log_softmax_of_channels", between(lambda: nn.LogSoftmax(1))),
    Network(
        "channel_arithmetic",
        between(lambda: Net(lambda net, x: x / (1 + x.square().sum(1, keepdim=True).sqrt()) - x.clamp(-1, 0.5))),
    ),
    Network(
        "where_and_maximum",
        between(lambda: Net(lambda net, x: torch.where(x > 0, x.sin(), torch.maximum(x, -x * 0.3)) ** 2)),
    ),
    Network("casts", between(lambda: Net(lambda net, x: x.double() + x.detach().float().to(x.dtype)))),
    # Channels: split, joined, moved, maxed.
    Network(
        "chunk_split_cat",
        between(
            lambda: Net(lambda net, x: torch.cat([*x.split([1, 3], 1)[::-1], x.chunk(2, 1)[1], x[:, 1:2]], 1)),
            channels=7,
        ),
    ),
    Network("maxout", between(lambda: Net(lambda net, x: x.unflatten(1, (2, 2)).amax(2)), channels=2)),
    Network("channel_shuffle", lambda: rows(nn.Conv2d(3, 6, 3, padding=1), ShuffleUnit(6), nn.Conv2d(6, 2, 3))),
    Network(
        "linear_of_channels",
        between(lambda: Net(lambda net, x: net.fc(x.movedim(1, -1)).movedim(-1, 1), fc=nn.Linear(4, 4))),
    ),
    # Centre crops and slices of space.
    Network("crop", between(lambda: Net(lambda net, x: x[:, :, 3:-2, 5:30]))),
    Network("two_crops_added", between(lambda: Net(lambda net, x: x[..., 1:, :-1] - x[..., :-1, 1:]))),
    # Blocks that people build networks from.
    Network(
        "residual",
        lambda: rows(nn.Conv2d(3, 4, 3, padding=1), Residual(4, 4), Residual(4, 6, 2)),
        train=False,
    ),
    Network("residual_train", lambda: rows(nn.Conv2d(3, 4, 3, padding=1), Residual(4, 4), Residual(4, 6, 2))),
    Network("resnext", lambda: rows(nn.Conv2d(3, 8, 3, 2), Bottleneck(8, 4, 2), Bottleneck(8, 4, 4))),
    Network("dense", lambda: rows(Dense(3, 2, 3), nn.AvgPool2d(2), Dense(9, 2, 2))),
    Network("inception", lambda: rows(Inception(3), nn.MaxPool2d(3, 2, ceil_mode=True), Inception(9))),
    Network("convnext", lambda: rows(nn.Conv2d(3, 4, 4, 4), ConvNeXt(4), nn.Conv2d(4, 6, 2, 2), ConvNeXt(6))),
    Network("squeeze_excite", lambda: rows(nn.Conv2d(3, 4, 3, padding=1), SqueezeExcite(4), nn.Conv2d(4, 2, 3))),
    Network("mobilenet", lambda: rows(nn.Conv2d(3, 4, 3, 2, 1), InvertedResidual(4), InvertedResidual(4))),
    Network("attention_gate", lambda: rows(nn.Conv2d(3, 1, 3), AttentionGate())),
    # Encoder and decoder: the deepest level sees far, the skips carry the borders.
    Network("unet_1d", lambda: EncoderDecoder(1), (1, 64)),
    Network("unet", lambda: EncoderDecoder(2, norm=True), (1, 36, 44)),
    Network("unet_cropped", lambda: EncoderDecoder(2, padding=0), (1, 61, 53)),
    Network("unet_3d", lambda: EncoderDecoder(3), (1, 16, 12, 20)),
    Network("unet_3d_norm", lambda: EncoderDecoder(3, norm=True), (1, 12, 16, 12)),
    # Batch norm: running statistics used, and statistics of the whole batch and image.
    Network("batch_norm_eval", between(lambda: nn.BatchNorm2d(4)), train=False),
    Network("batch_norm", between(lambda: rows(nn.BatchNorm2d(4), nn.ReLU()))),
    Network("batch_norm_cumulative", between(lambda: nn.BatchNorm2d(4, momentum=None))),
    Network("batch_norm_untracked", between(lambda: nn.BatchNorm2d(4, track_running_stats=False))),
    Network(
        "batch_norm_untracked_eval",
        between(lambda: nn.BatchNorm2d(4, track_running_stats=False)),
        train=False,
    ),
    Network("batch_norm_plain_scale", between(lambda: nn.BatchNorm2d(4, affine=False, eps=0.1, momentum=0.9))),
    Network("batch_norm_of_input", lambda: rows(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3, 2))),
    Network(
        "batch_norm_1d",
        lambda: rows(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 2, 3)),
        LINE,
    ),
    Network(
        "batch_norm_3d",
        lambda: rows(nn.Conv3d(2, 3, 3), nn.BatchNorm3d(3), nn.ReLU(), nn.Conv3d(3, 2, 3)),
        VOLUME,
    ),
    # Norms of one sample.
    Network("group_norm", between(lambda: nn.GroupNorm(2, 4))),
    Network("group_norm_of_all", between(lambda: nn.GroupNorm(1, 4, affine=False))),
    Network("instance_norm", between(lambda: nn.InstanceNorm2d(4, affine=True))),
    Network("instance_norm_tracked", between(lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True))),
    Network(
        "instance_norm_tracked_eval",
        between(lambda: nn.InstanceNorm2d(4, track_running_stats=True)),
        train=False,
    ),
    Network(
        "instance_norm_3d",
        lambda: rows(nn.Conv3d(2, 3, 3, padding=1), nn.InstanceNorm3d(3), nn.PReLU(), nn.Conv3d(3, 2, 3)),
        VOLUME,
    ),
    # Weights that are computed: once per forward, and the gradient goes through the computation.
    Network(
        "weight_norm",
        lambda: rows(weight_norm(nn.Conv2d(3, 4, 3)), nn.Tanh(), weight_norm(nn.ConvTranspose2d(4, 2, 2, 2), dim=1)),
    ),
    Network(
        "spectral_norm",
        lambda: rows(spectral_norm(nn.Conv2d(3, 4, 3)), nn.Tanh(), spectral_norm(nn.Conv2d(4, 2, 3))),
    ),
    Network("spectral_norm_eval", lambda: rows(spectral_norm(nn.Conv2d(3, 4, 3)), nn.Tanh()), train=False),
    Network(
        "standardised_weights",
        lambda: rows(StandardisedConv(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), StandardisedConv(4, 2, 3)),
    ),
    # Noise.
    Network(
        "stochastic_depth",
        lambda: rows(
            nn.Conv2d(3, 4, 3, padding=1),
            StochasticDepth(nn.Conv2d(4, 4, 3, padding=1), 0.4),
            nn.Conv2d(4, 2, 3),
        ),
    ),
    Network(
        "dropout",
        between(lambda: rows(nn.Dropout(0.3), nn.Softplus(), nn.Dropout(0.6, inplace=True))),
    ),
    Network(
        "dropout_3d",
        lambda: rows(nn.Conv3d(2, 3, 3, padding=1), nn.Dropout(0.5), nn.Conv3d(3, 2, 3)),
        VOLUME,
    ),
    Network("channel_dropout", between(lambda: nn.Dropout2d(0.4))),
    Network("dropout_eval", between(lambda: nn.Dropout(0.5)), train=False),
    # Whole networks: what is global runs plainly on stored maps.
    Network("classifier", whole(lambda: rows(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)))),
    Network("classifier_max", whole(lambda: rows(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 5)))),
    Network("classifier_grid", whole(lambda: rows(nn.Flatten(), nn.Linear(8 * 9 * 11, 5)))),
    Network(
        "classifier_ragged_bins",
        whole(lambda: rows(nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten(), nn.Dropout(0.0), nn.Linear(48, 5))),
    ),
    Network("mean_of_space", whole(lambda: Net(lambda net, x: net.fc(x.mean((2, 3))), fc=nn.Linear(8, 3)))),
    Network("amax_of_space", whole(lambda: Net(lambda net, x: x.amax((-2, -1))))),
    Network(
        "mean_and_max",
        whole(lambda: Net(lambda net, x: torch.cat([x.mean((2, 3)), x.amax((2, 3)), x.sum((2, 3))], 1))),
    ),
    Network("log_sum_exp", whole(lambda: Net(lambda net, x: torch.logsumexp(x, (2, 3))))),
    Network(
        "top_of_map",
        whole(lambda: Net(lambda net, x: net.c(x).flatten(1).topk(5, 1).values.mean(1), c=nn.Conv2d(8, 1, 1))),
    ),
    Network(
        "attention_pool",
        whole(
            lambda: Net(
                lambda net, x: (torch.softmax(net.c(x).flatten(2), -1) * x.flatten(2)).sum(-1),
                c=nn.Conv2d(8, 1, 1),
            )
        ),
    ),
    Network(
        "resnet_classifier",
        lambda: rows(
            nn.Conv2d(3, 4, 7, 2, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
            Residual(4, 4),
            Residual(4, 6, 2),
            nn.AdaptiveAvgPool2d((1, 1)),
            nn.Flatten(1),
            nn.Linear(6, 3),
        ),
        (3, 61, 49),
    ),
    Network(
        "loss_inside",
        lambda: Net(loss_inside, a=nn.Conv2d(3, 4, 3, padding=1), b=nn.Conv2d(4, 2, 3, padding=1)),
        more=lambda batch: {"target": torch.randn(batch, 2, 37, 45, dtype=torch.float64)},
    ),
    *(
        Network(f"loss_{name}", build, image, more=more)
        for name, (loss, image, classes) in LOSSES.items()
        for build, image, more in [with_loss(loss, image, classes)]
    ),
    Network(
        "losses_at_two_scales",
        lambda: Net(
            lambda net, x, *, target: (
                F.cross_entropy(net.b(torch.tanh(net.a(x))), target)
                + 0.5 * F.cross_entropy(net.c(torch.tanh(net.a(x))), target[:, ::2, ::2])
            ),
            a=nn.Conv2d(3, 4, 3, padding=1),
            b=nn.Conv2d(4, 3, 1),
            c=nn.Conv2d(4, 3, 3, 2, 1),
        ),
        more=lambda batch: {"target": torch.randint(0, 3, (batch, 37, 45))},
    ),
    Network(
        "loss_and_logits",
        lambda: Net(
            lambda net, x, *, target: (lambda y: {"loss": F.cross_entropy(y, target), "logits": y})(net.a(x)),
            a=nn.Conv2d(3, 3, 3, padding=1),
        ),
        more=lambda batch: {"target": torch.randint(0, 3, (batch, 37, 45))},
    ),
    # Operations that need the whole map and keep it a map: they run plainly on what is stored.
    Network(
        "attention",
        lambda: Net(
            attention,
            down=nn.Conv2d(3, 4, 4, 4),
            attend=nn.MultiheadAttention(4, 2, batch_first=True),
            out=nn.Conv2d(4, 2, 3),
        ),
    ),
    Network(
        "fourier",
        lambda: Net(
            fourier, a=nn.Conv2d(3, 3, 3, padding=1), b=nn.Conv2d(3, 2, 3), gain=nn.Parameter(torch.randn(3, 1, 1))
        ),
    ),
    Network(
        "spatial_transformer",
        lambda: Net(transformer, first=nn.Conv2d(3, 3, 3, padding=1), fc=nn.Linear(3, 6), conv=nn.Conv2d(3, 2, 3)),
    ),
    Network("flip_and_roll", between(lambda: Net(lambda net, x: x.flip(3) + x.roll((2, -5), (2, 3))))),
    Network("cumulative_sum", between(lambda: Net(lambda net, x: x.cumsum(2) / 10))),
    Network("softmax_of_space", between(lambda: Net(lambda net, x: x * x.softmax(3)))),
    Network("norm_of_space", between(lambda: Net(lambda net, x: F.normalize(x, dim=(2, 3))))),  # type: ignore[arg-type]  # torch says int
    Network("layer_norm_of_space", between(lambda: nn.LayerNorm((37, 45)))),
    # Inputs and results that are more than one tensor.
    Network(
        "pyramid",
        lambda: Net(pyramid, a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 5, 3, 2), c=nn.Conv2d(5, 2, 3, 2, 1)),
    ),
    Network(
        "side_inputs",
        lambda: Net(mask_weighted, a=nn.Conv2d(3, 4, 3, padding=1), b=nn.Conv2d(4, 2, 3)),
        more=lambda batch: {
            "gate": torch.randn(batch, 4, dtype=torch.float64),
            "mask": torch.rand(batch, 1, 37, 45, dtype=torch.float64),
        },
    ),
    Network(
        "labels_too",
        lambda: Net(lambda net, x: (lambda y: (y, y.argmax(1), y > 0, y.max(1)))(net.a(x)), a=nn.Conv2d(3, 4, 3)),
    ),
    Network("same_result_twice", lambda: Net(lambda net, x: (lambda y: (y, [y]))(net.a(x)), a=nn.Conv2d(3, 4, 3))),
    Network("input_returned", lambda: Net(lambda net, x: (net.a(x), x), a=nn.Conv2d(3, 4, 3))),
    Network(
        "coarse_side_input",
        lambda: Net(
            lambda net, x, *, context: net.a(x) + F.interpolate(net.b(context), size=x.shape[2:]),
            a=nn.Conv2d(3, 4, 3, padding=1),
            b=nn.Conv2d(2, 4, 3, padding=1),
        ),
        more=lambda batch: {"context": torch.randn(batch, 2, 9, 11, dtype=torch.float64)},
    ),
    # Parameters and modules in unusual places.
    Network("tied_weights", tied),
    Network(
        "one_module_twice",
        lambda: Net(lambda net, x: net.conv(torch.tanh(net.conv(x))), conv=nn.Conv2d(3, 3, 3, padding=1)),
    ),
    Network(
        "recurrent",
        lambda: Net(
            lambda net, x: net.step(torch.tanh(net.step(torch.tanh(net.step(x) + x)) + x)),
            step=nn.Conv2d(3, 3, 3, padding=1),
        ),
    ),
    Network("frozen", frozen),
    Network(
        "unused_parameter",
        lambda: Net(lambda net, x: net.a(x), a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(3, 4, 3)),
    ),
    Network(
        "bare_parameters",
        lambda: Net(
            lambda net, x: net.conv(x * net.gain) + net.shift,
            conv=nn.Conv2d(3, 4, 3),
            gain=nn.Parameter(torch.randn(3, 1, 1)),
            shift=nn.Parameter(torch.randn(1, 4, 1, 1)),
        ),
    ),
    # Code in forward that a capture could burn in or lose.
    Network("coordinates", lambda: Net(coordinates, conv=nn.Conv2d(5, 4, 3, padding=1))),
    Network("positions", lambda: Net(positions, conv=nn.Conv2d(3, 4, 3, padding=1))),
    Network(
        "no_grad_branch",
        lambda: Net(no_grad_branch, a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 1, 3, padding=1), c=nn.Conv2d(4, 2, 3)),
    ),
    Network("detached", between(lambda: Net(lambda net, x: x * x.detach().sigmoid()))),
    Network("own_autocast", lambda: Net(own_autocast, a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 2, 3, 2))),
    # MONAI's networks, as they come.
    Network(
        "monai_unet",
        lambda: UNet(2, 1, 2, channels=(4, 8, 16), strides=(2, 2), num_res_units=2),
        (1, 36, 44),
        large=True,
    ),
    Network(
        "monai_unet_3d",
        lambda: UNet(3, 1, 2, channels=(4, 6, 8), strides=(2, 2), norm="batch"),
        (1, 16, 12, 20),
        large=True,
    ),
    Network(
        "monai_basic_unet",
        lambda: BasicUNet(2, 1, 2, features=(4, 4, 6, 6, 8, 4)),
        (1, 53, 47),
        large=True,
    ),
    Network(
        "monai_seg_res_net",
        lambda: SegResNet(
            2,
            init_filters=4,
            in_channels=1,
            out_channels=2,
            blocks_down=(1, 1, 1),
            blocks_up=(1, 1),
            norm=("GROUP", {"num_groups": 2}),
        ),
        (1, 36, 44),
        large=True,
    ),
    Network(
        "monai_dyn_unet",
        lambda: DynUNet(2, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), filters=(4, 6, 8), res_block=True),
        (1, 36, 44),
        large=True,
    ),
    Network(
        "monai_dyn_unet_3d",
        lambda: DynUNet(3, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), filters=(4, 6, 8)),
        (1, 16, 12, 20),
        large=True,
    ),
    Network(
        "monai_densenet121",
        lambda: DenseNet121(2, 1, 2, init_features=8, growth_rate=4),
        (1, 67, 81),
        tiles=(32, (40, 23), 48),
        large=True,
    ),
]

BY_NAME = {network.name: network for network in NETWORKS}
