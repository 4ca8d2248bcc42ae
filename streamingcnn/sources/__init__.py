"""Where pixels come from, read box by box."""

from streamingcnn.sources.array import ArraySource as ArraySource
from streamingcnn.sources.masked import MaskedSource as MaskedSource
from streamingcnn.sources.scaled import ScaledSource as ScaledSource
from streamingcnn.sources.slide import SlideImage as SlideImage
from streamingcnn.sources.slide import open_image as open_image
from streamingcnn.sources.source import ConstantBlocks as ConstantBlocks
from streamingcnn.sources.source import ReadError as ReadError
from streamingcnn.sources.source import Source as Source
