"""Where pixels come from, read box by box."""

from streamingcnn.sources.slide import SlideImage as SlideImage
from streamingcnn.sources.slide import open_image as open_image
from streamingcnn.sources.source import ReadError as ReadError
from streamingcnn.sources.source import Source as Source
