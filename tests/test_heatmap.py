"""Heatmaps: what they show, exactly; the files that are made of them, where viewers look for them."""

from __future__ import annotations

import csv
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from streamingcnn import StreamingModule
from streamingcnn.boxes import Box
from streamingcnn.cli.main import main
from streamingcnn.input_gradient import input_gradient
from streamingcnn.models import resnet18
from streamingcnn.slides import LabelSource, read_cases, read_geojson, tissue_mask
from streamingcnn.slides.contours import contours, geojson
from streamingcnn.slides.heat_files import read_heatmap, write_heatmap, write_tiff
from streamingcnn.slides.heatmaps import Heatmap
from streamingcnn.sources import ArraySource, MaskedSource, ScaledSource, Source, open_image
from streamingcnn.synthetic import make_slide, write_slide
from streamingcnn.training.explain import explain
from streamingcnn.training.run import load_run
from streamingcnn.training.slides import Slides

from .shared import shared
from .tiff_pages import pages
from .trained import train

DOUBLE = torch.float64


def double(source: Source) -> ScaledSource:
    return ScaledSource(source, 1 / 255, dtype=DOUBLE)


def pixels(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


class Forked(nn.Module):
    """The image is read by two stages: it goes into the end once more, at full size."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 4, 5, 2, 2), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 4, 3, 2, 1))
        self.end = nn.Conv2d(7, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        deep = nn.functional.interpolate(self.down(x), size=x.shape[2:], mode="nearest")
        made: Tensor = self.end(torch.cat([x, deep], 1)).mean((2, 3))
        return made


NETS: dict[str, Callable[[], nn.Module]] = {
    "convolutions": lambda: nn.Sequential(nn.Conv2d(3, 4, 7, 2, 3), nn.ELU(), nn.Conv2d(4, 2, 3, 2)),
    "resnet18": lambda: resnet18(num_classes=2),
    "forked": Forked,
    "statistics": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.InstanceNorm2d(4), nn.Sigmoid(), nn.Conv2d(4, 1, 3)),
}


@pytest.mark.parametrize("name, block", [*((name, 32) for name in NETS), ("forked", 100), ("convolutions", 512)])
def test_the_gradient_of_every_pixel_is_plain_pytorchs(name: str, block: int) -> None:
    net = NETS[name]().to(DOUBLE).eval()
    raw = pixels(117, 150)
    source = double(ArraySource(raw))
    x = source.read(((0, 117), (0, 150)))[None].requires_grad_()
    weight = torch.randn(net(x).shape, dtype=DOUBLE)
    expected_result = net(x)
    (expected,) = torch.autograd.grad((expected_result * weight).sum(), x)
    gathered = torch.full_like(x, torch.nan)
    boxes = []

    def take(box: Box, gradient: Tensor) -> None:
        boxes.append(box)
        gathered[:, :, *(slice(*interval) for interval in box)] = gradient

    result = input_gradient(StreamingModule(net, tile=32), source, lambda y: (y * weight).sum(), take, block)
    torch.testing.assert_close(result, expected_result.detach(), rtol=0, atol=1e-10)
    assert (gathered - expected).abs().max() <= 1e-10 * expected.abs().max()
    assert len(boxes) == len(set(boxes)) == -(-117 // block) * -(-150 // block)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_inside_a_mask_it_is_exact_too_and_tiles_of_background_run_once() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 5, 2, 2), nn.Tanh(), nn.Conv2d(4, 4, 3, 2, 1), nn.Tanh()).to(DOUBLE)
    mask = np.zeros((16, 16), bool)
    mask[4:7, 9:12] = True
    masked = MaskedSource(double(ArraySource(pixels(512, 512))), mask, fill=0.9)
    x = masked.read(((0, 512), (0, 512)))[None].requires_grad_()
    (expected,) = torch.autograd.grad((net(x) ** 2).mean(), x)
    heat = torch.zeros(512, 512, dtype=DOUBLE)

    def take(box: Box, gradient: Tensor) -> None:
        heat[tuple(slice(*interval) for interval in box)] = gradient[0].abs().sum(0)

    streamed = StreamingModule(net, tile=64)
    input_gradient(streamed, masked, lambda y: (y**2).mean(), take, 64)
    inside = torch.from_numpy(np.kron(mask, np.ones((32, 32), bool)))
    wanted = expected[0].abs().sum(0)[inside]
    assert wanted.min() > 0
    torch.testing.assert_close(heat[inside], wanted, rtol=1e-9, atol=0)
    assert not heat[~inside].any()  # what was filled in has no gradient of its own


def test_only_some_rows_of_the_gradient_exist_at_a_time() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 7, 2, 3), nn.ReLU(), nn.Conv2d(2, 1, 3, 2, 1))
    source = ScaledSource(ArraySource(pixels(1024, 512)))
    seen = []

    class Blocks(dict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            super().__setitem__(key, value)
            seen.append(len(self))

    import streamingcnn.input_gradient as module

    init = module._Blocks.__init__

    def watched(self: module._Blocks, *args: Any) -> None:
        init(self, *args)
        self.begun = Blocks()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Blocks, "__init__", watched)
        input_gradient(StreamingModule(net, tile=128), source, lambda y: y.sum(), lambda *_: None, 64)
    assert max(seen) <= 4 * 512 // 64  # of 128 blocks at most four rows of eight


def test_whole_numbers_have_no_gradient() -> None:
    with pytest.raises(ValueError, match="wrap it in ScaledSource"):
        input_gradient(StreamingModule(nn.Conv2d(3, 1, 3)), ArraySource(pixels(64, 64)), torch.sum, print)


# ------------------------------------------------------------------------------------------------- what is shown


class Head(nn.Module):
    """A logit at each place, averaged; as this package's mean head."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.logits = nn.Conv2d(channels, outputs, 1)

    def forward(self, features: Tensor) -> Tensor:
        made: Tensor = self.logits(features).flatten(2).mean(2)
        return made

    def where(self) -> nn.Module:
        return self.logits


class AttentionHead(Head):
    """A weight at each place."""

    def where(self) -> nn.Module:
        return nn.Sequential(self.logits, Shares())


class Shares(nn.Module):
    def forward(self, scores: Tensor) -> Tensor:
        return scores.flatten(2).softmax(2).view(scores.shape)


class Headed(nn.Sequential):
    """A trunk and a head, as `make_network` names them."""

    trunk: nn.Module
    head: Head

    def __init__(self, trunk: nn.Module, head: Head) -> None:
        super().__init__(OrderedDict(trunk=trunk, head=head))


def network(head: type[Head], outputs: int = 1) -> Headed:
    torch.manual_seed(3)
    trunk = nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.Tanh(), nn.Conv2d(8, 8, 3, 2, 1), nn.Tanh())
    return Headed(trunk, head(8, outputs)).eval()


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("heat") / "slide.tif"
    write_slide(make_slide(2, tumour=True, size=(512, 768)), path)
    return path


def test_activation_is_the_heads_own_map_and_lies_on_its_stride(slide: Path) -> None:
    net = network(Head)
    image = open_image(slide, level=1)
    seen = ScaledSource(image)
    heatmap = explain(StreamingModule(net, tile=64), seen)
    with torch.no_grad():
        logits = net.head.logits(net.trunk(seen.read(((0, 256), (0, 384)))[None]))[0, 0]
    torch.testing.assert_close(torch.from_numpy(heatmap.heat), torch.sigmoid(logits), rtol=0, atol=1e-6)
    assert heatmap.scale == (16, 16)  # stride 8 at half the resolution
    assert heatmap.size == (512, 768)
    assert heatmap.mpp == pytest.approx((0.5, 0.5))
    against = explain(StreamingModule(net, tile=64), seen, target=0, classes=["normal", "tumour"])
    np.testing.assert_allclose(against.heat, 1 - heatmap.heat, atol=1e-6)
    assert "'normal'" in against.how


def test_attention_shows_the_weights_and_several_classes_the_answered_one(slide: Path) -> None:
    image = open_image(slide, level=2)
    seen = ScaledSource(image)
    x = seen.read(((0, 128), (0, 192)))[None]
    net = network(AttentionHead)
    heatmap = explain(StreamingModule(net, tile=64), seen)
    with torch.no_grad():
        weights = net.head.where()(net.trunk(x))[0, 0].numpy()
    even = weights * weights.size
    expected = np.clip((even - 1) / (max(2, np.quantile(even, 0.995)) - 1), 0, 1)
    np.testing.assert_allclose(heatmap.heat, expected, atol=1e-3)
    assert heatmap.how.startswith("attention")
    with torch.no_grad():
        net.head.logits.weight.zero_()
    assert explain(StreamingModule(net, tile=64), seen).heat.max() < 1e-3  # attention to all alike is cold
    net = network(Head, 3)
    heatmap = explain(StreamingModule(net, tile=64), seen, kind="multiclass", classes="abc")
    with torch.no_grad():
        chosen, maps = int(net(x).argmax()), net.head.logits(net.trunk(x))[0]
    np.testing.assert_allclose(heatmap.heat, maps.softmax(0)[chosen].numpy(), atol=1e-6)
    assert f"'{'abc'[chosen]}'" in heatmap.how


def test_saliency_is_the_mean_gradient_of_each_cell(slide: Path) -> None:
    net = network(Head, 2).to(DOUBLE)
    image = open_image(slide, level=1)
    seen = double(image)
    heatmap = explain(StreamingModule(net, tile=64), seen, "saliency", kind="multiclass", target=1)
    x = seen.read(((0, 256), (0, 384)))[None].requires_grad_()
    (gradient,) = torch.autograd.grad(net(x)[0, 1], x)
    cells = gradient.abs().sum(1)[0].reshape(16, 16, 24, 16).mean((1, 3)).numpy()
    np.testing.assert_allclose(heatmap.heat, np.minimum(cells / np.quantile(cells, 0.995), 1), rtol=1e-4)
    assert heatmap.scale == (32, 32)


def test_a_map_that_a_network_has_not_is_refused_with_those_it_has(slide: Path) -> None:
    image = open_image(slide, level=2)
    net = StreamingModule(network(Head), tile=64)
    with pytest.raises(ValueError, match=r"its head has activation; ask for activation or saliency"):
        explain(net, ScaledSource(image), "attention")
    plain = StreamingModule(nn.Conv2d(3, 1, 3), tile=64)
    with pytest.raises(ValueError, match="no head of this package; ask for saliency"):
        explain(plain, ScaledSource(image), "activation")
    with pytest.raises(ValueError, match="there is no way 'gradcam'"):
        explain(plain, ScaledSource(image), "gradcam")


# ------------------------------------------------------------------------------------------------------- the files


def blobs(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    """A smooth random map between 0 and 1."""
    coarse = torch.rand(1, 1, rows // 6 + 2, columns // 6 + 2, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (rows, columns), mode="bicubic")[0, 0].clamp(0, 1).numpy()


def heatmap_of(
    heat: NDArray[np.floating], scale: float = 16.0, mpp: tuple[float, float] | None = (0.5, 0.5), beyond: int = 3
) -> Heatmap:
    size = tuple(round(extent * scale) - beyond for extent in heat.shape)
    return Heatmap(heat.astype(np.float32), (scale, scale), size, mpp, "made")


def test_the_tiff_is_a_pyramid_that_openslide_opens_at_the_right_resolution_and_place(tmp_path: Path) -> None:
    heat = blobs(700, 900)
    write_tiff(heatmap_of(heat), tmp_path / "heat.tif")
    with openslide.OpenSlide(tmp_path / "heat.tif") as opened:
        assert opened.dimensions == (900, 700)
        assert opened.level_count == 3
        assert opened.level_downsamples == pytest.approx((1, 2, 4), rel=0.01)
        assert [float(opened.properties[f"openslide.mpp-{axis}"]) for axis in "xy"] == pytest.approx([8, 8])
        region = np.array(opened.read_region((300, 200), 0, (500, 400)))[..., 0]
        assert np.abs(region / 255 - heat[200:600, 300:800]).max() < 0.003
        low = np.array(opened.read_region((0, 0), 2, (225, 175)))[..., 0]
        assert np.abs(low / 255 - heat.reshape(175, 4, 225, 4).mean((1, 3))).max() < 0.003
    with tifffile.TiffFile(tmp_path / "heat.tif") as opened:
        assert opened.is_bigtiff
        assert all(page.is_tiled for page in pages(opened))
        assert [page.subfiletype for page in pages(opened)] == [0, 1, 1]
        said = json.loads(pages(opened)[0].description)
        assert said["how"] == "made"
        assert said["level-0 pixels to a pixel (y, x)"] == [16, 16]


def test_a_tiff_of_a_slide_without_resolution_says_none(tmp_path: Path) -> None:
    write_tiff(heatmap_of(blobs(40, 30), mpp=None), tmp_path / "heat.tif")
    with openslide.OpenSlide(tmp_path / "heat.tif") as opened:
        assert "openslide.mpp-x" not in opened.properties


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_contours_are_valid_and_enclose_what_is_above_the_threshold(seed: int, threshold: float) -> None:
    geometry = pytest.importorskip("shapely")
    heat = blobs(40 + seed, 37, seed)
    if seed % 2:
        heat = np.round(heat * 10) / np.float32(10)  # many cells exactly at the threshold
    heatmap = heatmap_of(heat)
    areas = [geometry.Polygon(area.points, area.holes) for area in contours(heatmap, threshold)]
    assert all(area.is_valid for area in areas)
    assert sum(area.area for area in areas) == pytest.approx(geometry.unary_union(areas).area)
    together = geometry.unary_union(areas)
    height, width = heatmap.size
    assert together.is_empty or geometry.box(0, 0, width, height).covers(together)
    for row in range(0, heat.shape[0] - 1, 3):
        for column in range(0, heat.shape[1] - 1, 3):
            middle = geometry.Point((column + 0.5) * 16, (row + 0.5) * 16)
            value = float(heatmap.heat[row, column])
            if value == threshold or abs(value - threshold) > 1e-3:  # nearer than corners are rounded to
                assert together.covers(middle) == (value > threshold)


def test_a_ring_of_heat_has_a_hole_with_an_island_in_it() -> None:
    y, x = np.mgrid[:40, :40]
    far = np.hypot(y - 20, x - 20)
    heat = ((far > 8) & (far < 15)) * 0.9 + (far < 3) * 0.9
    areas = contours(heatmap_of(heat), 0.5)
    assert [len(area.holes) for area in areas] == [1, 0]
    whole = contours(heatmap_of(np.ones((10, 10))), 0.5)
    assert len(whole) == 1
    assert whole[0].points.min(0).tolist() == pytest.approx([8, 8], abs=8)
    assert contours(heatmap_of(np.zeros((10, 10))), 0.5) == []


def test_geojson_is_what_qupath_takes_and_our_own_reader_too(tmp_path: Path) -> None:
    heatmap = heatmap_of(blobs(40, 37))
    made = geojson(heatmap, (0.4, 0.7))
    assert made["type"] == "FeatureCollection"
    classes = set()
    for feature in made["features"]:
        assert feature["type"] == "Feature"
        properties = feature["properties"]
        classes.add(properties["classification"]["name"])
        assert all(0 <= channel <= 255 for channel in properties["classification"]["color"])
        found = properties["measurements"]
        assert 0 <= found["mean heat"] <= found["highest heat"] <= 1
        assert found["area um^2"] == pytest.approx(found["area px^2"] / 4, rel=1e-3)
        for ring in feature["geometry"]["coordinates"]:
            assert ring[0] == ring[-1]
            assert len(ring) >= 4
    assert classes == {"heat above 0.40", "heat above 0.70"}
    (tmp_path / "a.geojson").write_text(json.dumps(made, allow_nan=False))
    again = read_geojson(tmp_path / "a.geojson")
    assert len(again) == len(made["features"])
    inside = LabelSource([o for o in again if o.group == "heat above 0.70"], (40, 37), 16).read(((0, 40), (0, 37)))
    assert (inside[0].bool().numpy() == (heatmap.heat > 0.7))[:-1, :-1].all()


def test_all_files_are_written_and_the_numbers_come_back(slide: Path, tmp_path: Path) -> None:
    heatmap = Heatmap(blobs(32, 48).astype(np.float32), (16.0, 16.0), (512, 768), (0.5, 0.5), "made")
    paths = write_heatmap(heatmap, slide, tmp_path / "maps" / "a.slide")
    assert [path.name for path in paths] == ["a.slide.tif", "a.slide.geojson", "a.slide.png", "a.slide.npz"]
    with Image.open(paths[2]) as drawn:
        assert drawn.size == (768, 512)
    again = read_heatmap(paths[3])
    assert (again.heat == heatmap.heat).all()
    assert (again.scale, again.size, again.mpp, again.how) == ((16, 16), (512, 768), (0.5, 0.5), "made")


def test_the_overlay_is_hot_where_the_heat_is() -> None:
    heat = np.zeros((10, 10), np.float32)
    heat[2, 7] = 1
    spread = Heatmap(heat, (32.0, 32.0), (300, 310), None, "").at((150, 155))
    assert spread.shape == (150, 155)
    row, column = divmod(int(spread.argmax()), 155)
    assert (row, column) == pytest.approx((2.5 * 16, 7.5 * 16), abs=1)


# -------------------------------------------------------------------------------------------------- a real slide


def test_a_real_slide_to_files_that_lie_over_the_same_tissue(tmp_path: Path) -> None:
    geometry = pytest.importorskip("shapely")
    path = shared("slides/CMU-1-Small-Region.svs")

    class Darkness(nn.Module):
        """Hot where pixels are dark and red: tissue."""

        def forward(self, features: Tensor) -> Tensor:
            return 8 * (0.80 - features[:, 1:2])

    class Dark(Head):
        def where(self) -> nn.Module:
            return Darkness()

    trunk = nn.AvgPool2d(32, 32, ceil_mode=True)
    net = StreamingModule(Headed(trunk, Dark(3, 1)).eval(), tile=512)
    image = open_image(path)
    heatmap = explain(net, ScaledSource(image), "activation")
    tif, areas, drawn, _ = write_heatmap(heatmap, path, tmp_path / "CMU-1")
    with openslide.OpenSlide(path) as slide, openslide.OpenSlide(tif) as heat:
        across, down = (float(heat.properties[f"openslide.mpp-{axis}"]) for axis in "xy")
        assert (across, down) == pytest.approx((32 * 0.499, 32 * 0.499), rel=1e-3)
        assert heat.dimensions == tuple(-(-extent // 32) for extent in slide.dimensions)
        pixels = np.array(heat.read_region((0, 0), 0, heat.dimensions))[..., 0]
    with tifffile.TiffFile(tif) as opened:
        of, per = pages(opened)[0].tags["XResolution"].value
        assert of / per == pytest.approx(1e4 / across, rel=1e-3)
        assert (opened.asarray() == pixels).all()
    mask = tissue_mask(path)
    features = json.loads(areas.read_text())["features"]
    polygons = [geometry.geometry.shape(feature["geometry"]) for feature in features]
    assert polygons
    assert all(polygon.is_valid and polygon.geom_type == "Polygon" for polygon in polygons)
    outlines = [o for o in read_geojson(areas) if o.group == "heat above 0.50"]
    painted = LabelSource(outlines, mask.kept.shape, mask.scale[0]).read(((0, 186), (0, 139)))[0].bool().numpy()
    overlap = (painted & mask.kept).sum() / (painted | mask.kept).sum()
    assert overlap > 0.75
    with Image.open(drawn) as picture:
        assert max(picture.size) <= 1536


# ------------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return train(tmp_path_factory.mktemp("run"), "--head", "mean")


def test_the_command_writes_all_files_for_one_slide_or_a_table(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, table = run
    slide = table.parent / "images" / "test_001.tif"
    assert main(["heatmap", str(out), str(slide), "--out", str(tmp_path), "--threshold", "0.3"]) == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"test_001{ending}" for ending in (".geojson", ".npz", ".png", ".tif")]
    first = read_heatmap(tmp_path / "test_001.npz")
    assert first.size == (512, 512)
    assert first.scale == (16, 16)  # stride 8 on level 1
    assert "no contours" not in capsys.readouterr().out and json.loads((tmp_path / names[0]).read_text())["features"]
    assert main(["heatmap", str(out), str(slide), "--out", str(tmp_path / "none"), "--threshold", "1"]) == 0
    assert "no contours, as nothing reaches 1)" in capsys.readouterr().out
    assert not json.loads((tmp_path / "none" / names[0]).read_text())["features"]
    assert main(["heatmap", str(out), str(table), "--way", "saliency"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("saliency: mean |gradient| of the answer") == 8
    assert "8 slides, 0 with a problem" in shown
    assert len(list((out / "heatmaps").glob("*.tif"))) == 8
    before = (out / "heatmaps" / "test_001.tif").stat().st_mtime_ns
    assert main(["heatmap", str(out), str(table), "--skip-done"]) == 0
    assert (out / "heatmaps" / "test_001.tif").stat().st_mtime_ns == before


def test_the_command_goes_on_after_a_bad_slide(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, table = run
    (tmp_path / "broken.tif").write_bytes(b"II*\0")
    slides = [tmp_path / "broken.tif", table.parent / "images" / "test_000.tif"]
    assert main(["heatmap", str(out), *map(str, slides), "--out", str(tmp_path / "maps")]) == 1
    captured = capsys.readouterr()
    assert "PROBLEM broken" in captured.err
    assert sorted(path.suffix for path in (tmp_path / "maps").iterdir()) == [".geojson", ".npz", ".png", ".tif"]
    assert main(["heatmap", str(out), str(slides[1]), "--class", "benign"]) == 1
    assert "there is no class 'benign'; the run has 0, 1" in capsys.readouterr().err
    assert main(["heatmap", str(out), str(slides[1]), str(slides[1])]) == 1
    assert "would write the same files" in capsys.readouterr().err


def test_evaluate_writes_metrics_predictions_pictures_and_froc(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, table = run
    froc = ["--froc", "all", "--smallest", "30", "--heatmaps", "1", "--draws", "50"]
    assert main(["evaluate", str(out), str(table), *froc]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("AUC ")
    assert lines[-1].endswith("on 4 cases")
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["cases"] == 4
    assert 0 <= metrics["froc"]["score"] <= 1
    assert metrics["froc"]["lesions"] >= 2
    assert {"roc.png", "confusion.png", "froc.png", "predictions.csv", "report.html"} <= {p.name for p in out.iterdir()}
    net, settings = load_run(out)
    with (out / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    slides = Slides([case for case in read_cases(table) if case.split == "test"], settings)
    with torch.no_grad():
        expected = [float(torch.sigmoid(net(slides.image(number)))) for number in range(4)]
    assert [float(row["p_1"]) for row in rows] == pytest.approx(expected, abs=1e-5)


def test_evaluate_on_another_split_and_of_a_checkpoint(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, table = run
    checkpoint = out / "checkpoints" / "last.pt"
    arguments = [
        str(checkpoint),
        str(table),
        "--split",
        "all",
        "--out",
        str(tmp_path),
        "--heatmaps",
        "0",
        "--draws",
        "20",
    ]
    assert main(["evaluate", *arguments]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["cases"] == 8
    assert not (tmp_path / "heatmaps").exists()
    assert main(["evaluate", str(out), str(table), "--split", "validation"]) == 1
    assert "has no case of split 'validation' (it has test, train); --split all takes all" in capsys.readouterr().err
