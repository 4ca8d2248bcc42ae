"""Made data whose truth is known to the pixel: seeded, rendered tile by tile."""

from streamingcnn.synthetic.cohort import Cohort as Cohort
from streamingcnn.synthetic.glass import OnGlass as OnGlass
from streamingcnn.synthetic.glass import make_large_slide as make_large_slide
from streamingcnn.synthetic.slides import Slide as Slide
from streamingcnn.synthetic.slides import make_slide as make_slide
from streamingcnn.synthetic.tiff import write_slide as write_slide
