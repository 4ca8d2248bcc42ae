"""Volumes as pictures, and the tomosynthesis example from end to end on tiny volumes."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.GifImagePlugin import GifImageFile

from streamingcnn.mammography import film, slice_picture
from streamingcnn.synthetic.tomosynthesis import make_volume


def test_a_gif_holds_every_slice_with_its_saliency_and_the_outlines(tmp_path: Path) -> None:
    volume = make_volume(1, malignant=True, size=(5, 64, 48), diameters=(16, 20))
    pixels, z = volume.array(), volume.lesions[0][1]
    saliency, masks = np.zeros((2, 5, 4, 3)), np.stack([volume.mask(k) for k in range(5)], 1)
    saliency[1, z, 0, 2] = 1.0
    path = film(tmp_path / "volume.gif", pixels, saliency, masks, scale=2)
    with Image.open(path) as made:
        assert isinstance(made, GifImageFile)
        assert made.n_frames == 5 and made.size == (96, 128) and made.info["loop"] == 0
        reds = []
        for frame in range(5):
            made.seek(frame)
            colour = np.array(made.convert("RGB")).astype(int)[2:30, 66:94]
            reds.append(int((colour[..., 0] - colour[..., 1]).mean()))
    assert int(np.argmax(reds)) == z and reds[z] > 60 > 10 > max(red for k, red in enumerate(reds) if k != z)


def test_black_and_white_are_the_same_in_every_slice() -> None:
    volume = np.zeros((2, 32, 24))
    volume[0, 16, 12], volume[1, 16, 12] = 1.0, 0.5
    assert [np.array(slice_picture(volume, z))[16, 12, 0] for z in (0, 1)] == [255, 128]
    with pytest.raises(ValueError, match="slice 2 of a volume of shape"):
        slice_picture(volume, 2)
    with pytest.raises(ValueError, match=r"needed is .classes, slices, h, w."):
        slice_picture(volume, 0, np.zeros((2, 4, 3)))


def test_a_volume_of_more_contrast_and_lines_is_the_same_volume() -> None:
    plain, lines, stronger = (
        make_volume(3, malignant=True, size=(6, 96, 64), lines=lines, contrast=contrast)
        for lines, contrast in ((0, 0.22), (30, 0.22), (0, 0.4))
    )
    assert plain.lesions == lines.lesions == stronger.lesions
    _, z, row, column, _ = plain.lesions[0]
    outside = lines.slice(z) - plain.slice(z)  # noise is drawn after the lines, so it is another
    assert 0.05 < (outside > 0.08).mean() < 0.5 and (outside < -0.08).mean() < 0.001
    middle = (slice(round(row) - 3, round(row) + 4), slice(round(column) - 3, round(column) + 4))
    assert stronger.slice(z)[middle].mean() > plain.slice(z)[middle].mean() + 0.05


def test_the_table_says_what_was_not_run() -> None:
    from examples.tomosynthesis.__main__ import table

    ours = {"benign": {0: 0.75, 1: 0.5}, "malignant": {0: 0.875, 1: 0.8125}}
    flat = {"benign": {1: 0.5}, "malignant": {1: 0.875}}
    said = table({"gmic3d": ours, "maximum": flat, "slices": {"benign": {}, "malignant": {}}}, [0, 1]).splitlines()
    assert said[2] == "| 3D-GMIC | malignant | 0.844 | 0.875 | 0.812 |"
    assert said[4] == "| GMIC on the maximum projection | malignant | 0.875 | not run | 0.875 |"
    assert said[6] == "| ResNet per slice | malignant | not run | not run | not run |"
    assert said[-2] == "- 3D-GMIC, malignant, at least 0.85: MISSED (0.844)"
    # The means of the same seeds stand against each other.
    assert said[-1] == "- above the maximum projection: MISSED (0.812 against 0.875 of seed 1 alone)"


def test_the_example_trains_all_three_networks_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from examples.tomosynthesis import __main__ as example

    config = (example.HERE / "cpu.toml").read_text()
    for whole, tiny in (
        ("[24, 256, 192] ", "[4, 128, 96] "),
        ("train = 160 ", "train = 4 "),
        ("validation = 64", "validation = 4"),
        ("test = 80", "test = 4"),
        ("diameters = [32.0, 58.0]", "diameters = [16.0, 24.0]"),
        ("crop = 96", "crop = 48"),
        ("width = 16", "width = 8"),
    ):
        assert whole in config, f"cpu.toml has no longer {whole}"
        config = config.replace(whole, tiny)
    lines = [re.sub(r"^((last_)?epochs) = \d+", r"\1 = 1", line) for line in config.splitlines()]
    (tmp_path / "tiny.toml").write_text("\n".join(lines))
    out = tmp_path / "out"
    given = ["--config", str(tmp_path / "tiny.toml"), "--out", str(out), "--seeds", "5", "--slices", "2"]
    monkeypatch.setattr(sys, "argv", ["tomosynthesis", *given])
    example.main()
    printed = capsys.readouterr().out
    assert "| 3D-GMIC | malignant |" in printed and "- above the maximum projection: " in printed
    results = json.loads((out / "results.json").read_text())
    assert set(results) == {"seeds", "gmic3d", "maximum", "slices", "intervals"}
    assert len(results["slices"]["malignant"]) == len(results["intervals"]["slices"]["malignant"]) == 1
    assert {path.name for path in (out / "pictures").iterdir()} == {"volume.gif", "crops.png", "slice_02.png"}
    # What is trained is judged again without training.
    (out / "5" / "slices.pt").unlink()
    monkeypatch.setattr(sys, "argv", ["tomosynthesis", *given, "--trained"])
    example.main()
    again = json.loads((out / "results.json").read_text())
    assert again["slices"]["malignant"] == {} and again["gmic3d"] == results["gmic3d"]
    rows = (out / "5" / "gmic3d.csv").read_text().splitlines()
    assert rows[0] == "image_index,benign_pred,malignant_pred,benign_label,malignant_label" and len(rows) == 5
