"""Heatmaps: what they show, exactly; the files that are made of them, where viewers look for them."""

import json
from collections import OrderedDict

import numpy as np
import openslide
import pytest
import tifffile
import torch
from PIL import Image
from torch import nn

from streamingcnn import StreamingModule
from streamingcnn.input_gradient import input_gradient
from streamingcnn.models import resnet18
from streamingcnn.slides import LabelSource, read_geojson, tissue_mask
from streamingcnn.slides.contours import contours, geojson
from streamingcnn.slides.heat_files import read_heatmap, write_heatmap, write_tiff
from streamingcnn.slides.heatmaps import Heatmap
from streamingcnn.sources import ArraySource, MaskedSource, ScaledSource, open_image
from streamingcnn.synthetic import make_slide, write_slide
from streamingcnn.training.explain import explain

from .shared import shared

DOUBLE = torch.float64


def double(source):
    return ScaledSource(source, 1 / 255, dtype=DOUBLE)


def pixels(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


class Forked(nn.Module):
    """The image is read by two stages: it goes into the end once more, at full size."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 4, 5, 2, 2), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 4, 3, 2, 1))
        self.end = nn.Conv2d(7, 2, 3, padding=1)

    def forward(self, x):
        deep = nn.functional.interpolate(self.down(x), size=x.shape[2:], mode="nearest")
        return self.end(torch.cat([x, deep], 1)).mean((2, 3))


NETS = {
    "convolutions": lambda: nn.Sequential(nn.Conv2d(3, 4, 7, 2, 3), nn.ELU(), nn.Conv2d(4, 2, 3, 2)),
    "resnet18": lambda: resnet18(num_classes=2),
    "forked": Forked,
    "statistics": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.InstanceNorm2d(4), nn.Sigmoid(), nn.Conv2d(4, 1, 3)),
}


@pytest.mark.parametrize("name, block", [*((name, 32) for name in NETS), ("forked", 100), ("convolutions", 512)])
def test_the_gradient_of_every_pixel_is_plain_pytorchs(name, block):
    net = NETS[name]().to(DOUBLE).eval()
    raw = pixels(117, 150)
    source = double(ArraySource(raw))
    x = source.read(((0, 117), (0, 150)))[None].requires_grad_()
    weight = torch.randn(net(x).shape, dtype=DOUBLE)
    expected_result = net(x)
    (expected,) = torch.autograd.grad((expected_result * weight).sum(), x)
    gathered = torch.full_like(x, torch.nan)
    boxes = []

    def take(box, gradient):
        boxes.append(box)
        gathered[(..., *(slice(*interval) for interval in box))] = gradient

    result = input_gradient(StreamingModule(net, tile=32), source, lambda y: (y * weight).sum(), take, block)
    torch.testing.assert_close(result, expected_result.detach(), rtol=0, atol=1e-10)
    assert (gathered - expected).abs().max() <= 1e-10 * expected.abs().max()
    assert len(boxes) == len(set(boxes)) == -(-117 // block) * -(-150 // block)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_inside_a_mask_it_is_exact_too_and_tiles_of_background_run_once():
    net = nn.Sequential(nn.Conv2d(3, 4, 5, 2, 2), nn.Tanh(), nn.Conv2d(4, 4, 3, 2, 1), nn.Tanh()).to(DOUBLE)
    mask = np.zeros((16, 16), bool)
    mask[4:7, 9:12] = True
    masked = MaskedSource(double(ArraySource(pixels(512, 512))), mask, fill=0.9)
    x = masked.read(((0, 512), (0, 512)))[None].requires_grad_()
    (expected,) = torch.autograd.grad((net(x) ** 2).mean(), x)
    heat = torch.zeros(512, 512, dtype=DOUBLE)

    def take(box, gradient):
        heat[tuple(slice(*interval) for interval in box)] = gradient[0].abs().sum(0)

    streamed = StreamingModule(net, tile=64)
    input_gradient(streamed, masked, lambda y: (y**2).mean(), take, 64)
    inside = torch.from_numpy(np.kron(mask, np.ones((32, 32), bool)))
    wanted = expected[0].abs().sum(0)[inside]
    assert wanted.min() > 0
    torch.testing.assert_close(heat[inside], wanted, rtol=1e-9, atol=0)


def test_only_some_rows_of_the_gradient_exist_at_a_time():
    net = nn.Sequential(nn.Conv2d(3, 2, 7, 2, 3), nn.ReLU(), nn.Conv2d(2, 1, 3, 2, 1))
    source = ScaledSource(ArraySource(pixels(1024, 512)))
    seen = []

    class Blocks(dict):
        def __setitem__(self, key, value):
            super().__setitem__(key, value)
            seen.append(len(self))

    import streamingcnn.input_gradient as module

    init = module._Blocks.__init__

    def watched(self, *args):
        init(self, *args)
        self.begun = Blocks()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Blocks, "__init__", watched)
        input_gradient(StreamingModule(net, tile=128), source, lambda y: y.sum(), lambda *_: None, 64)
    assert max(seen) <= 4 * 512 // 64  # of 128 blocks at most four rows of eight


def test_whole_numbers_have_no_gradient():
    with pytest.raises(ValueError, match="wrap it in ScaledSource"):
        input_gradient(StreamingModule(nn.Conv2d(3, 1, 3)), ArraySource(pixels(64, 64)), torch.sum, print)


# ------------------------------------------------------------------------------------------------- what is shown


class Head(nn.Module):
    """A logit at each place, averaged; as this package's mean head."""

    def __init__(self, channels, outputs):
        super().__init__()
        self.logits = nn.Conv2d(channels, outputs, 1)

    def forward(self, features):
        return self.logits(features).flatten(2).mean(2)

    def where(self):
        return self.logits


class AttentionHead(Head):
    """A weight at each place."""

    def where(self):
        return nn.Sequential(self.logits, Shares())


class Shares(nn.Module):
    def forward(self, scores):
        return scores.flatten(2).softmax(2).view(scores.shape)


def network(head, outputs=1):
    torch.manual_seed(3)
    trunk = nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.Tanh(), nn.Conv2d(8, 8, 3, 2, 1), nn.Tanh())
    return nn.Sequential(OrderedDict(trunk=trunk, head=head(8, outputs))).eval()


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("heat") / "slide.tif"
    write_slide(make_slide(2, tumour=True, size=(512, 768)), path)
    return path


def test_activation_is_the_heads_own_map_and_lies_on_its_stride(slide):
    net = network(Head)
    image = open_image(slide, level=1)
    seen = ScaledSource(image)
    heatmap = explain(StreamingModule(net, tile=64), seen, image)
    with torch.no_grad():
        logits = net.head.logits(net.trunk(seen.read(((0, 256), (0, 384)))[None]))[0, 0]
    torch.testing.assert_close(torch.from_numpy(heatmap.heat), torch.sigmoid(logits), rtol=0, atol=1e-6)
    assert heatmap.scale == (16, 16)  # stride 8 at half the resolution
    assert heatmap.size == (512, 768)
    assert heatmap.mpp == pytest.approx((0.5, 0.5))
    against = explain(StreamingModule(net, tile=64), seen, image, target=0, classes=["normal", "tumour"])
    np.testing.assert_allclose(against.heat, 1 - heatmap.heat, atol=1e-6)
    assert "'normal'" in against.how


def test_attention_shows_the_weights_and_several_classes_the_answered_one(slide):
    image = open_image(slide, level=2)
    seen = ScaledSource(image)
    x = seen.read(((0, 128), (0, 192)))[None]
    net = network(AttentionHead)
    heatmap = explain(StreamingModule(net, tile=64), seen, image)
    with torch.no_grad():
        weights = net.head.where()(net.trunk(x))[0, 0].numpy()
    np.testing.assert_allclose(heatmap.heat, np.minimum(weights / np.quantile(weights, 0.995), 1), rtol=1e-4)
    assert heatmap.how.startswith("attention")
    net = network(Head, 3)
    heatmap = explain(StreamingModule(net, tile=64), seen, image, kind="multiclass", classes="abc")
    with torch.no_grad():
        chosen, maps = int(net(x).argmax()), net.head.logits(net.trunk(x))[0]
    np.testing.assert_allclose(heatmap.heat, maps.softmax(0)[chosen].numpy(), atol=1e-6)
    assert f"'{'abc'[chosen]}'" in heatmap.how


def test_saliency_is_the_mean_gradient_of_each_cell(slide):
    net = network(Head, 2).to(DOUBLE)
    image = open_image(slide, level=1)
    seen = double(image)
    heatmap = explain(StreamingModule(net, tile=64), seen, image, "saliency", kind="multiclass", target=1)
    x = seen.read(((0, 256), (0, 384)))[None].requires_grad_()
    (gradient,) = torch.autograd.grad(net(x)[0, 1], x)
    cells = gradient.abs().sum(1)[0].reshape(16, 16, 24, 16).mean((1, 3)).numpy()
    np.testing.assert_allclose(heatmap.heat, np.minimum(cells / np.quantile(cells, 0.995), 1), rtol=1e-4)
    assert heatmap.scale == (32, 32)


def test_a_map_that_a_network_has_not_is_refused_with_those_it_has(slide):
    image = open_image(slide, level=2)
    net = StreamingModule(network(Head), tile=64)
    with pytest.raises(ValueError, match=r"its head has activation; ask for activation or saliency"):
        explain(net, ScaledSource(image), image, "attention")
    plain = StreamingModule(nn.Conv2d(3, 1, 3), tile=64)
    with pytest.raises(ValueError, match="no head of this package; ask for saliency"):
        explain(plain, ScaledSource(image), image, "activation")
    with pytest.raises(ValueError, match="there is no way 'gradcam'"):
        explain(plain, ScaledSource(image), image, "gradcam")


# ------------------------------------------------------------------------------------------------------- the files


def blobs(rows, columns, seed=0):
    """A smooth random map between 0 and 1."""
    coarse = torch.rand(1, 1, rows // 6 + 2, columns // 6 + 2, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (rows, columns), mode="bicubic")[0, 0].clamp(0, 1).numpy()


def heatmap_of(heat, scale=16.0, mpp=(0.5, 0.5), beyond=3):
    size = tuple(round(extent * scale) - beyond for extent in heat.shape)
    return Heatmap(heat.astype(np.float32), (scale, scale), size, mpp, "made")


def test_the_tiff_is_a_pyramid_that_openslide_opens_at_the_right_resolution_and_place(tmp_path):
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
        assert all(page.is_tiled for page in opened.pages)
        assert [page.subfiletype for page in opened.pages] == [0, 1, 1]
        said = json.loads(opened.pages[0].description)
        assert said["how"] == "made"
        assert said["level-0 pixels to a pixel (y, x)"] == [16, 16]


def test_a_tiff_of_a_slide_without_resolution_says_none(tmp_path):
    write_tiff(heatmap_of(blobs(40, 30), mpp=None), tmp_path / "heat.tif")
    with openslide.OpenSlide(tmp_path / "heat.tif") as opened:
        assert "openslide.mpp-x" not in opened.properties


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_contours_are_valid_and_enclose_what_is_above_the_threshold(seed, threshold):
    geometry = pytest.importorskip("shapely")
    heat = blobs(40 + seed, 37, seed)
    if seed % 2:
        heat = np.round(heat * 10) / 10  # many cells exactly at the threshold
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


def test_a_ring_of_heat_has_a_hole_with_an_island_in_it():
    y, x = np.mgrid[:40, :40]
    far = np.hypot(y - 20, x - 20)
    heat = ((far > 8) & (far < 15)) * 0.9 + (far < 3) * 0.9
    areas = contours(heatmap_of(heat), 0.5)
    assert [len(area.holes) for area in areas] == [1, 0]
    whole = contours(heatmap_of(np.ones((10, 10))), 0.5)
    assert len(whole) == 1
    assert whole[0].points.min(0).tolist() == pytest.approx([8, 8], abs=8)
    assert contours(heatmap_of(np.zeros((10, 10))), 0.5) == []


def test_geojson_is_what_qupath_takes_and_our_own_reader_too(tmp_path):
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


def test_all_files_are_written_and_the_numbers_come_back(slide, tmp_path):
    heatmap = Heatmap(blobs(32, 48).astype(np.float32), (16.0, 16.0), (512, 768), (0.5, 0.5), "made")
    paths = write_heatmap(heatmap, slide, tmp_path / "maps" / "a.slide")
    assert [path.name for path in paths] == ["a.slide.tif", "a.slide.geojson", "a.slide.png", "a.slide.npz"]
    with Image.open(paths[2]) as drawn:
        assert drawn.size == (768, 512)
    again = read_heatmap(paths[3])
    assert (again.heat == heatmap.heat).all()
    assert (again.scale, again.size, again.mpp, again.how) == ((16, 16), (512, 768), (0.5, 0.5), "made")


def test_the_overlay_is_hot_where_the_heat_is():
    heat = np.zeros((10, 10), np.float32)
    heat[2, 7] = 1
    spread = Heatmap(heat, (32.0, 32.0), (300, 310), None, "").at((150, 155))
    assert spread.shape == (150, 155)
    row, column = divmod(int(spread.argmax()), 155)
    assert (row, column) == (pytest.approx(2.5 * 16, abs=1), pytest.approx(7.5 * 16, abs=1))


# -------------------------------------------------------------------------------------------------- a real slide


def test_a_real_slide_to_files_that_lie_over_the_same_tissue(tmp_path):
    geometry = pytest.importorskip("shapely")
    path = shared("slides/CMU-1-Small-Region.svs")

    class Darkness(nn.Module):
        """Hot where pixels are dark and red: tissue."""

        def forward(self, features):
            return 8 * (0.80 - features[:, 1:2])

    trunk = nn.AvgPool2d(32, 32, ceil_mode=True)
    head = Head(3, 1)
    head.where = Darkness
    net = StreamingModule(nn.Sequential(OrderedDict(trunk=trunk, head=head)).eval(), tile=512)
    image = open_image(path)
    heatmap = explain(net, ScaledSource(image), image, "activation")
    tif, areas, drawn, _ = write_heatmap(heatmap, path, tmp_path / "CMU-1")
    with openslide.OpenSlide(path) as slide, openslide.OpenSlide(tif) as heat:
        across, down = (float(heat.properties[f"openslide.mpp-{axis}"]) for axis in "xy")
        assert (across, down) == pytest.approx((32 * 0.499, 32 * 0.499), rel=1e-3)
        assert heat.dimensions == tuple(-(-extent // 32) for extent in slide.dimensions)
        pixels = np.array(heat.read_region((0, 0), 0, heat.dimensions))[..., 0]
    with tifffile.TiffFile(tif) as opened:
        assert opened.pages[0].tags["XResolution"].value[0] / opened.pages[0].tags["XResolution"].value[
            1
        ] == pytest.approx(1e4 / across, rel=1e-3)
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
