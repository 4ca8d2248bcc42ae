"""Mammograms and tomosynthesis: reading, finding the breast, the window that holds most of it, and measures.

reading.py       16-bit PNG, DICOM, NIfTI, through libraries; one function
breast.py        the breast's outline and the box around it
window.py        a window of a network's size that holds most of the breast
standardise.py   mean 0 and deviation 1
table.py         images with paths, labels and masks
measures.py      Dice and pixel average precision of saliency maps
predictions.py   the table of what was said of each image
overlay.py       pictures: saliency, outlines, crops
film.py          a volume as a picture per slice and as a GIF
"""

from streamingcnn.mammography.breast import Breast, find_breast
from streamingcnn.mammography.film import film, slice_picture
from streamingcnn.mammography.measures import best_threshold, dice, pixel_average_precision
from streamingcnn.mammography.overlay import overlay, picture
from streamingcnn.mammography.predictions import write_predictions
from streamingcnn.mammography.reading import read_image
from streamingcnn.mammography.standardise import standardised
from streamingcnn.mammography.table import Exam, read_exams
from streamingcnn.mammography.window import best_window, cut_window

__all__ = [
    "Breast",
    "Exam",
    "best_threshold",
    "best_window",
    "cut_window",
    "dice",
    "film",
    "find_breast",
    "overlay",
    "picture",
    "pixel_average_precision",
    "read_exams",
    "read_image",
    "slice_picture",
    "standardised",
    "write_predictions",
]
