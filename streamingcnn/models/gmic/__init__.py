"""GMIC, 3D-GMIC and GLAM: find small objects in large images, trained from labels of whole images.

    image -> trunk -> saliency map -> where to look closer -> crops -> local network -> answer

one idea per file::

    trunk.py       the ResNet-22 over the whole image; the part that is worth streaming
    pooling.py     from a map to one number: the mean of its highest cells
    regions.py     from a map to windows: greedy search, in 2-D and over the slices of a volume
    crops.py       from windows to pixels, out of a tensor or a source
    attention.py   from crops to one vector: gated attention
    depth.py       the slices of a volume one after another, at the memory of one
    volume_net.py  a local network for crops of several slices
    pyramid.py     a local decoder for GLAM at a fraction of the cost
    gmic.py, gmic3d.py, glam.py    the three networks
    losses.py      what they are trained with
"""

from streamingcnn.models.gmic.glam import GLAM, GLAMResult
from streamingcnn.models.gmic.gmic import GMIC, GMICResult
from streamingcnn.models.gmic.gmic3d import GMIC3D
from streamingcnn.models.gmic.losses import GLAMLoss, GMICLoss
from streamingcnn.models.gmic.pyramid import PyramidLocal
from streamingcnn.models.gmic.trunk import ResNet22
from streamingcnn.models.gmic.volume_net import VolumeNet

__all__ = [
    "GLAM",
    "GMIC",
    "GMIC3D",
    "GLAMLoss",
    "GLAMResult",
    "GMICLoss",
    "GMICResult",
    "PyramidLocal",
    "ResNet22",
    "VolumeNet",
]
