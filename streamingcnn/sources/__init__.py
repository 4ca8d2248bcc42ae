"""Where pixels come from, read box by box."""

from streamingcnn.sources.array import ArraySource as ArraySource
from streamingcnn.sources.arrays import NpyImage as NpyImage
from streamingcnn.sources.arrays import ZarrImage as ZarrImage
from streamingcnn.sources.file import FileImage as FileImage
from streamingcnn.sources.flat import FlatImage as FlatImage
from streamingcnn.sources.masked import MaskedSource as MaskedSource
from streamingcnn.sources.nifti import NiftiImage as NiftiImage
from streamingcnn.sources.opened import open_image as open_image
from streamingcnn.sources.resampled import ResampledSource as ResampledSource
from streamingcnn.sources.scaled import ScaledSource as ScaledSource
from streamingcnn.sources.slide import SlideImage as SlideImage
from streamingcnn.sources.source import ConstantBlocks as ConstantBlocks
from streamingcnn.sources.source import ReadError as ReadError
from streamingcnn.sources.source import Source as Source
from streamingcnn.sources.tiff import TiffImage as TiffImage
from streamingcnn.sources.turned import TurnedSource as TurnedSource
