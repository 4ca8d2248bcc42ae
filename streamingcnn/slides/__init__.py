"""What surrounds a slide in a study: the table of cases, the outlines, the heatmaps."""

from streamingcnn.slides.annotations import Outline as Outline
from streamingcnn.slides.annotations import mask_of as mask_of
from streamingcnn.slides.annotations import read_asap as read_asap
from streamingcnn.slides.cases import Case as Case
from streamingcnn.slides.cases import read_cases as read_cases
from streamingcnn.slides.heatmaps import overlay as overlay
from streamingcnn.slides.stain import standardised as standardised
from streamingcnn.slides.thumbnail import Thumbnail as Thumbnail
from streamingcnn.slides.thumbnail import thumbnail as thumbnail
from streamingcnn.slides.tissue import TissueMask as TissueMask
from streamingcnn.slides.tissue import tissue_mask as tissue_mask
