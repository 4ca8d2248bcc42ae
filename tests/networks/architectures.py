"""The blocks of known architectures, encoders and decoders; MONAI's networks as they come."""

from __future__ import annotations

from monai.networks.nets.basic_unet import BasicUNet
from monai.networks.nets.densenet import DenseNet121
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.unet import UNet
from torch import nn

from tests.blocks import (
    AttentionGate,
    Bottleneck,
    ConvNeXt,
    Dense,
    EncoderDecoder,
    Inception,
    InvertedResidual,
    Residual,
    SqueezeExcite,
)

from .network import Network, rows

BLOCKS = [
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
]


MONAI = [
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
