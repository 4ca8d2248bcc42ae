"""Networks as plain `nn.Module`s with nothing of tiles in them; they stream like any other."""

from streamingcnn.models.resnet import ResNet, resnet18, resnet34, resnet50
from streamingcnn.models.unet3d import DiceCrossEntropy, UNet3D

__all__ = ["DiceCrossEntropy", "ResNet", "UNet3D", "resnet18", "resnet34", "resnet50"]
