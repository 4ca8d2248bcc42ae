"""The loop, the loss, the metrics, tables, outlines, pictures and the report."""

from __future__ import annotations

import csv
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from streamingcnn.extras import require
from streamingcnn.slides import Case, Outline, mask_of, overlay, read_asap, read_cases, standardised
from streamingcnn.synthetic import Cohort
from streamingcnn.training import (
    Epoch,
    LogitMap,
    Prediction,
    Study,
    auc,
    fit,
    predict,
    saliency,
    slide_loss,
    slide_score,
    study,
    write_report,
)
from streamingcnn.training.examples import Draw, Images, drawn
from streamingcnn.training.order import mixed, order_of


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 5, 4, 2), nn.BatchNorm2d(4), nn.ReLU(), LogitMap(4))


def squares(count: int, size: int = 32) -> tuple[list[torch.Tensor], list[int]]:
    """Speckled pictures; those with label 1 have a dark square somewhere."""
    draw = np.random.default_rng(0)
    images = []
    for number in range(count):
        image = torch.from_numpy(draw.integers(140, 180, (3, size, size), dtype=np.uint8))
        top, left = draw.integers(0, size - 10, 2)
        if number % 2:
            image[:, top : top + 10, left : left + 10] = 60
        images.append(image)
    return images, [number % 2 for number in range(count)]


# --------------------------------------------------------------------------------------------------- the loss


def test_the_score_is_the_mean_of_the_highest_share() -> None:
    logits = torch.randn(3, 1, 20, 30, generator=torch.Generator().manual_seed(0))
    expected = logits.flatten(1).sort(descending=True).values[:, :30].mean(1)
    torch.testing.assert_close(slide_score(logits), expected)
    assert slide_score(torch.ones(1, 1, 2, 2)) == 1  # fewer than twenty positions: the highest one


def test_the_loss_is_its_two_terms() -> None:
    logits = torch.randn(2, 1, 20, 20, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0.0, 1.0])
    expected = binary_cross_entropy_with_logits(slide_score(logits), labels)
    expected += binary_cross_entropy_with_logits(10 * logits.mean((1, 2, 3)), labels)
    torch.testing.assert_close(slide_loss(logits, labels), expected)


# --------------------------------------------------------------------------------------------------- the loop


def test_the_loop_learns_and_tells_the_two_kinds_apart() -> None:
    images, labels = squares(12)
    net = small_net()
    history = fit(net, images, labels, slide_loss, epochs=40, progress=False, lr=1e-2)
    assert [epoch.number for epoch in history] == list(range(1, 41))
    assert history[-1].loss < 0.5 * history[0].loss
    assert net.training
    scores = [predict(net, Case(Path(), y, "test"), x, slide_score).score for x, y in zip(images, labels, strict=True)]
    assert auc(labels, scores) == 1


def test_the_seed_decides_the_run() -> None:
    images, labels = squares(6)
    runs = []
    for seed in (0, 0, 1):
        net = small_net()
        history = fit(net, images, labels, slide_loss, epochs=2, seed=seed, progress=False)
        runs.append([epoch.loss for epoch in history])
    assert runs[0] == runs[1] != runs[2]


def test_every_batch_holds_the_labels_in_their_share() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0.0] * 10 + [1.0] * 10)
    orders = [mixed(labels, generator) for _ in range(20)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(20))
        assert all(labels[pair].sum() == 1 for pair in order.view(-1, 2))
    assert len({tuple(order.tolist()) for order in orders}) == 20
    rare = torch.tensor([0.0] * 12 + [1.0] * 4)
    for _ in range(5):
        assert all(labels.sum() == 1 for labels in rare[mixed(rare, generator)].view(-1, 4))
    assert sorted(mixed(torch.zeros(5), generator).tolist()) == list(range(5))


def test_the_order_and_the_turns_follow_from_seed_and_epoch() -> None:
    labels = torch.tensor([0.0, 1.0] * 10)
    assert order_of(labels, 0, 1) == order_of(labels, 0, 1) != order_of(labels, 0, 2)
    assert sorted(order_of(torch.rand(20), 0, 1)) == list(range(20))  # a regression
    several = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, torch.nan]] * 5)
    order = several[order_of(several, 0, 1)].nan_to_num(nan=-1.0)
    assert all(len(order[first : first + 4].unique(dim=0)) == 4 for first in range(0, 20, 4))  # each kind in its share
    turns = {(drawn(0, epoch, "a").quarters, drawn(0, epoch, "a").mirror) for epoch in range(100)}
    assert len(turns) == 8
    assert drawn(0, 1, "a", flips=False) == Draw()
    assert max(abs(gain - 1) for gain in drawn(0, 1, "a", jitter=0.1).gain) <= 0.1


def test_slides_are_turned_and_reflected_in_eight_ways() -> None:
    images = Images([torch.randint(0, 200, (3, 9, 9), dtype=torch.uint8)], [0])
    draws = [Draw(quarters, mirror) for quarters in range(4) for mirror in (False, True)]
    assert len({tuple(images.image(0, draw).flatten().tolist()) for draw in draws}) == 8
    oblong = Images([torch.randint(0, 200, (3, 6, 9), dtype=torch.uint8)], [0])
    assert len({tuple(oblong.image(0, draw).flatten().tolist()) for draw in draws}) == 4
    assert all(oblong.image(0, draw).shape == (3, 6, 9) for draw in draws)
    volume = Images([torch.rand(1, 2, 6, 9)], [[0.0, 1.0]], prepare=None)  # as it is, but for the turns
    assert torch.equal(volume.image(0, Draw(mirror=True)), volume.images[0].flip(-1))
    assert volume.targets.tolist() == [[0.0, 1.0]]


def test_the_bar_shows_loss_speed_and_memory(capfd: pytest.CaptureFixture[str]) -> None:
    images, labels = squares(4)
    fit(small_net(), images, labels, slide_loss, epochs=1)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert re.search(r"epoch 1.*loss \d\.\d{3}, [\d.]+ slides/s, [\d.]+ [MG]iB", shown.err)


def test_numbers_that_do_not_fit_are_refused() -> None:
    images, labels = squares(4)
    with pytest.raises(ValueError, match="4 images and 3 labels"):
        fit(small_net(), images, labels[:3], slide_loss, epochs=1, progress=False)
    with pytest.raises(ValueError, match="nothing to train on"):
        fit(small_net(), [], [], slide_loss, epochs=1, progress=False)
    images[0] = images[0][:, :16]
    with pytest.raises(ValueError, match=r"slides of 2 sizes, such as \[\(16, 32\), \(32, 32\)\].*batch=1"):
        fit(small_net(), images, labels, slide_loss, epochs=1, progress=False)
    assert len(fit(small_net(), images, labels, slide_loss, epochs=1, batch=1, progress=False)) == 1


def test_a_loss_that_is_no_number_stops_the_run() -> None:
    images, labels = squares(2)
    with pytest.raises(FloatingPointError, match=r"the loss became nan in epoch 1 on .*; .* lr=0\.003"):
        fit(small_net(), images, labels, lambda y, _: y.sum() * torch.nan, epochs=1, progress=False)


# ------------------------------------------------------------------------------------------------ predictions


def test_saliency_is_the_gradient_of_the_score_in_cells() -> None:
    net, image = small_net(), squares(2)[0][1]
    nn.init.normal_(net.get_parameter("3.weight"))
    heat = saliency(net, image, slide_score, cell=8)
    x = standardised(image[None]).requires_grad_()
    net.eval()
    slide_score(net(x)).backward()
    assert x.grad is not None
    cells = x.grad.abs().sum(1)[0].view(4, 8, 4, 8).sum((1, 3))
    torch.testing.assert_close(heat / heat.max(), cells / cells.max())


def test_the_auc_is_the_share_of_pairs_in_order() -> None:
    draw = np.random.default_rng(0)
    labels, scores = draw.integers(0, 2, 40).tolist(), draw.normal(size=40).round(1).tolist()
    split = [[score for score, label in zip(scores, labels, strict=True) if label == kind] for kind in (0, 1)]
    pairs = [(high > low) + 0.5 * (high == low) for low in split[0] for high in split[1]]
    assert auc(labels, scores) == pytest.approx(np.mean(pairs))
    with pytest.raises(ValueError, match="slides of both labels"):
        auc([1, 1], [0.1, 0.2])


def test_a_missing_library_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamingcnn.extras.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"Jinja2 and scikit-learn, .* pip install 'streamingcnn\[demo\]'"):
        require("jinja2", "sklearn")
    with pytest.raises(ModuleNotFoundError, match=r"streamingcnn\[demo\]"):
        auc([0, 1], [0.0, 1.0])
    assert importlib.util.find_spec("sklearn") is not None


# ---------------------------------------------------------------------------------------------------- outlines


ASAP = """<?xml version="1.0"?>
<ASAP_Annotations><Annotations>
  <Annotation Name="A" Type="Polygon" PartOfGroup="Tumor" Color="#F4FA58"><Coordinates>
    <Coordinate Order="2" X="8" Y="8" /><Coordinate Order="0" X="2" Y="4" />
    <Coordinate Order="1" X="8" Y="4" /><Coordinate Order="3" X="2" Y="8" /></Coordinates></Annotation>
  <Annotation Name="B" Type="Dot" PartOfGroup="None"><Coordinates><Coordinate Order="0" X="1" Y="1" />
  </Coordinates></Annotation>
</Annotations><AnnotationGroups /></ASAP_Annotations>"""


def test_asap_outlines_in_the_order_of_their_corners(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(ASAP)
    outline, dot = read_asap(tmp_path / "a.xml")
    assert dot.points.tolist() == [[1, 1]]
    assert (outline.name, outline.group) == ("A", "Tumor")
    assert outline.points.tolist() == [[2, 4], [8, 4], [8, 8], [2, 8]]
    mask = mask_of([outline], (12, 10))
    assert mask.shape == (12, 10)
    assert mask[6, 5]
    assert not mask[2, 5]
    assert mask_of([outline], (12, 10), scale=0.5).shape == (6, 5)


def test_xml_that_is_not_asaps_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text("<html></html>")
    with pytest.raises(ValueError, match="starts with <html>"):
        read_asap(tmp_path / "a.xml")
    (tmp_path / "a.xml").write_text("not xml")
    with pytest.raises(ValueError, match="no XML file"):
        read_asap(tmp_path / "a.xml")


# ---------------------------------------------------------------------------------------- pictures and report


def test_an_overlay_is_hot_where_the_heat_is_and_the_slide_elsewhere() -> None:
    image = torch.full((3, 64, 96), 200, dtype=torch.uint8)
    heat = torch.zeros(4, 6)
    heat[1, 4] = 1
    outline = Outline("A", "Tumor", np.array([[10, 10], [30, 10], [30, 30], [10, 30]], float))
    picture = np.array(overlay(image, heat, [outline]))
    assert picture.shape == (64, 96, 3)
    assert picture[60, 4].tolist() == [200, 200, 200]
    red, _, blue = picture[24, 72].tolist()
    assert red > 180
    assert blue < 150
    assert picture[10, 20].tolist() == [0, 90, 0]
    small = np.array(overlay(image[:, ::2, ::2], heat, [outline], downsample=2))
    assert small[5, 10].tolist() == [0, 90, 0]


def test_the_report_needs_no_network_and_escapes_what_it_shows(tmp_path: Path) -> None:
    cases = [Case(tmp_path / f"{name}.tif", label, "test") for name, label in (("a<b", 1), ("c", 0))]
    predictions = tuple(Prediction(case, 1.5 - 2 * case.label, torch.zeros(1, 1)) for case in cases)
    result = Study(0.5, (Epoch(1, 1.4, 2.0), Epoch(2, 0.7, 2.0)), predictions, (("overlays/a b.png", "a<b"),))
    write_report(tmp_path / "report.html", result, title="A & B", facts={"test AUC": "0.5"}, plan="stage 1 > 2")
    page = (tmp_path / "report.html").read_text()
    assert "A &amp; B" in page
    assert "a&lt;b" in page
    assert "a<b" not in page
    assert 'src="overlays/a%20b.png"' in page
    assert page.count('class="wrong"') == 2
    assert "stage 1 &gt; 2" in page
    assert "<svg" in page
    loaded = re.findall(r'(?:src|href)\s*=\s*"([^"#]*)"', page)
    assert not [link for link in loaded if link.startswith(("http", "//"))]
    assert "@import" not in page


# --------------------------------------------------------------------------------------------------- a study


def test_a_study_leaves_weights_scores_and_pictures(tmp_path: Path) -> None:
    cases = read_cases(Cohort(seed=0, train=2, test=4, size=(512, 512)).write(tmp_path / "set"))
    net = small_net()
    result = study(net, cases, tmp_path / "run", level=1, epochs=1, progress=False)
    assert len(result.history) == 1
    assert [each.case.name for each in result.predictions] == [f"test_{n:03d}" for n in range(4)]
    assert result.predictions[0].logits.shape == (64, 64)
    loaded = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    assert all(torch.equal(loaded[name], value) for name, value in net.state_dict().items())
    rows = list(csv.DictReader((tmp_path / "run" / "predictions.csv").read_text().splitlines()))
    assert [float(row["score"]) for row in rows] == pytest.approx([p.score for p in result.predictions], abs=1e-5)
    assert [name for name, _ in result.pictures] == ["overlays/test_001.png", "overlays/test_003.png"]
    for name, _ in result.pictures:
        with Image.open(tmp_path / "run" / name) as picture:
            assert picture.size == (512, 256)


def test_a_study_without_both_labels_in_its_test_is_refused_before_training(tmp_path: Path) -> None:
    cases = [Case(tmp_path / "a.tif", 1, "train"), Case(tmp_path / "b.tif", 1, "test")]
    with pytest.raises(ValueError, match="the 1 slides with split 'test' must have both labels"):
        study(small_net(), cases, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------------ stain


def test_the_strength_of_stain_and_lamp_is_taken_out_and_glass_is_left_aside() -> None:
    draw = torch.Generator().manual_seed(0)
    tissue = torch.randint(90, 190, (3, 64, 64), generator=draw)
    glass = torch.full((3, 64, 64), 240)
    slide = torch.cat([tissue, glass], dim=-1).to(torch.uint8)
    paler = (torch.cat([tissue, glass], dim=-1) * 0.5 + 100).to(torch.uint8)
    a, b = standardised(torch.stack([slide, paler]))
    assert a.dtype == torch.float32
    torch.testing.assert_close(a[..., ::8, :64:8].flatten(1).mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(a[..., ::8, :64:8].flatten(1).std(1), torch.ones(3))
    torch.testing.assert_close(a[..., :64], b[..., :64], atol=0.05, rtol=0)
    torch.testing.assert_close(standardised(slide[None])[0], a)  # each slide by itself


def test_a_slide_of_glass_only_is_no_division_by_zero() -> None:
    assert torch.isfinite(standardised(torch.full((1, 3, 32, 32), 240, dtype=torch.uint8))).all()
    assert torch.isfinite(standardised(torch.full((1, 3, 32, 32), 100, dtype=torch.uint8))).all()
