"""What surrounds a slide in a study: the table of cases, the outlines, the heatmaps."""

from streamingcnn.slides.annotations import Outline as Outline
from streamingcnn.slides.annotations import read_annotations as read_annotations
from streamingcnn.slides.annotations import read_aperio as read_aperio
from streamingcnn.slides.annotations import read_asap as read_asap
from streamingcnn.slides.annotations import read_geojson as read_geojson
from streamingcnn.slides.cases import Case as Case
from streamingcnn.slides.cases import read_cases as read_cases
from streamingcnn.slides.heatmaps import overlay as overlay
from streamingcnn.slides.labels import CAMELYON16 as CAMELYON16
from streamingcnn.slides.labels import CAMELYON17 as CAMELYON17
from streamingcnn.slides.labels import LabelSource as LabelSource
from streamingcnn.slides.labels import mask_of as mask_of
from streamingcnn.slides.stain import standardised as standardised
from streamingcnn.slides.thumbnail import Thumbnail as Thumbnail
from streamingcnn.slides.thumbnail import thumbnail as thumbnail
from streamingcnn.slides.tissue import TissueMask as TissueMask
from streamingcnn.slides.tissue import tissue_mask as tissue_mask
