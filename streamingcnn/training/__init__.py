"""Training on whole slides: the loop, the loss from slide labels, predictions, metrics, the report."""

from streamingcnn.training.heads import LogitMap as LogitMap
from streamingcnn.training.in_memory import fit as fit
from streamingcnn.training.metrics import auc as auc
from streamingcnn.training.predict import Prediction as Prediction
from streamingcnn.training.predict import predict as predict
from streamingcnn.training.predict import saliency as saliency
from streamingcnn.training.report import write_report as write_report
from streamingcnn.training.slide_loss import slide_loss as slide_loss
from streamingcnn.training.slide_loss import slide_score as slide_score
from streamingcnn.training.study import Study as Study
from streamingcnn.training.study import study as study
from streamingcnn.training.watch import Epoch as Epoch
