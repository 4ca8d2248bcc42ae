"""A study from end to end: train on the slides of a table, test on those kept apart, draw what was found.

    out/
      model.pt              the weights, under the plain network's names
      predictions.csv       path, label and score of every test slide
      overlays/NAME.png     for each tumour slide of the test: probability of tumour, saliency, true outline

Test slides are read after training has ended, once; nothing is chosen on them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from streamingcnn.files import whole_file
from streamingcnn.slides.annotations import read_annotations
from streamingcnn.slides.cases import Case
from streamingcnn.slides.heatmaps import overlay
from streamingcnn.sources import open_image
from streamingcnn.training.in_memory import fit
from streamingcnn.training.metrics import auc
from streamingcnn.training.predict import Prediction, predict, saliency
from streamingcnn.training.slide_loss import slide_loss, slide_score
from streamingcnn.training.watch import Epoch

__all__ = ["Study", "study"]


@dataclass(frozen=True)
class Study:
    """The AUC on the test slides and what led to it; pictures (relative to the folder) with captions."""

    auc: float
    history: tuple[Epoch, ...]
    predictions: tuple[Prediction, ...]
    pictures: tuple[tuple[str, str], ...]


def study(
    net: nn.Module,
    cases: Sequence[Case],
    out: Path,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = slide_loss,
    score: Callable[[Tensor], Tensor] = slide_score,
    level: int = 0,
    epochs: int = 10,
    batch: int = 2,
    seed: int = 0,
    pictures: bool = True,
    progress: bool = True,
) -> Study:
    """Train a network that maps a slide to a map of logits, and test it.

    Example::

        net = StreamingModule(nn.Sequential(trunk, nn.Conv2d(64, 1, 1)), tile=256)
        result = study(net, read_cases("slides/labels.csv"), Path("run"))
        result.auc                                       # 0.98

    Args:
        net: a module, streamed or not, from (N, 3, height, width) to (N, 1, rows, columns).
        cases: slides whose split is train or test; others are left alone.
        out: the folder that the files above go to; it is made where missing.
        loss: of logits and labels (N,), a scalar.
        score: of logits, one number per slide.
        level: of the slides' pyramids, 0 is the full image.
        epochs, batch, seed, progress: as in `fit`.
        pictures: whether to draw the tumour slides of the test.

    Raises:
        ValueError: there is nothing to train on, or the test slides are not of both labels.
        OSError: a slide cannot be read, or a result cannot be written.
    """
    train = [case for case in cases if case.split == "train"]
    test = [case for case in cases if case.split == "test"]
    if {case.label for case in test} != {0, 1}:
        raise ValueError(f"the {len(test)} slides with split 'test' must have both labels, 0 and 1")
    (out / "overlays").mkdir(parents=True, exist_ok=True)

    images = [_read(case, level) for case in tqdm(train, "reading slides", disable=not progress, leave=False)]
    labels = [case.label for case in train]
    history = fit(net, images, labels, loss, epochs=epochs, batch=batch, seed=seed, progress=progress)
    weights = io.BytesIO()  # torch.save itself tells a full disk by a RuntimeError without a word of it
    torch.save(net.state_dict(), weights)
    with whole_file(out / "model.pt") as partial:
        partial.write_bytes(weights.getvalue())

    predictions = []
    drawn = []
    for case in tqdm(test, "testing", unit="slide", disable=not progress, leave=False):
        found = predict(net, case, _read(case, level), score)
        predictions.append(found)
        if pictures and case.label:
            name = f"overlays/{case.name}.png"
            with whole_file(out / name) as partial:
                _picture(net, found, score, level).save(partial, format="PNG", compress_level=1)
            drawn.append((name, f"{case.name}, score {found.score:.2f}"))
    with whole_file(out / "predictions.csv") as partial, partial.open("w", newline="") as file:
        rows = [(each.case.path, int(each.case.label), f"{each.score:.6f}") for each in predictions]
        csv.writer(file).writerows([("path", "label", "score"), *rows])

    result = auc([int(each.case.label) for each in predictions], [each.score for each in predictions])
    return Study(result, tuple(history), tuple(predictions), tuple(drawn))


def _read(case: Case, level: int) -> Tensor:
    return open_image(case.path, level=level).read_all()


def _picture(net: nn.Module, found: Prediction, score: Callable[[Tensor], Tensor], level: int) -> Image.Image:
    """Two copies of the slide side by side: under the map of logits, and under the saliency."""
    slide = open_image(found.case.path, level=level)
    pixels = slide.read_all()
    outlines = read_annotations(found.case.outlines) if found.case.outlines.exists() else []
    heats = [(torch.sigmoid(found.logits), (0.5, 1.0)), (saliency(net, pixels, score), (0.0, 1.0))]
    panels = [overlay(pixels, h, outlines, limits=at, downsample=slide.downsample) for h, at in heats]
    both = Image.new("RGB", (2 * panels[0].width, panels[0].height))
    for number, panel in enumerate(panels):
        both.paste(panel, (number * panel.width, 0))
    return both
