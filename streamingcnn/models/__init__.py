"""Networks as plain `nn.Module`s with nothing of tiles in them; they stream like any other."""

from streamingcnn.models.gmic import GLAM, GMIC, GMIC3D
from streamingcnn.models.resnet import ResNet, resnet18, resnet34, resnet50
from streamingcnn.models.unet3d import DiceCrossEntropy, UNet3D

__all__ = ["GLAM", "GMIC", "GMIC3D", "DiceCrossEntropy", "ResNet", "UNet3D", "resnet18", "resnet34", "resnet50"]
