"""Preparing mammograms and judging saliency maps: small images whose answer is known."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from streamingcnn.cli.main import main
from streamingcnn.mammography import (
    best_threshold,
    best_window,
    cut_window,
    dice,
    find_breast,
    overlay,
    picture,
    pixel_average_precision,
    read_exams,
    read_image,
    standardised,
    write_predictions,
)


def breast(faces: str = "right") -> np.ndarray:
    """A triangle from the chest (left) to a nipple at row 60, column 39, and a label in a corner."""
    image = np.zeros((120, 80), np.uint16)
    for row in range(20, 101):
        image[row, : 40 - abs(row - 60)] = 1000 + row
    image[3:7, 60:75] = 4000
    return image if faces == "right" else image[:, ::-1].copy()


@pytest.mark.parametrize("faces", ["right", "left"])
def test_the_breast_without_the_label_on_the_film(faces: str) -> None:
    found = find_breast(breast(faces), faces=faces, peel=3, margin=5)
    assert found.columns == ((0, 45) if faces == "right" else (35, 80))
    assert found.rows[0] <= 20 and found.rows[1] >= 100
    assert found.rightmost[1] == 39 and found.rightmost[0][0] + found.rows[0] == 60
    assert found.distance == 0


def test_nothing_thick_enough_says_what_to_change() -> None:
    with pytest.raises(ValueError, match="smaller peel"):
        find_breast(breast(), peel=60)
    with pytest.raises(ValueError, match="no breast"):
        find_breast(np.zeros((50, 50)))
    with pytest.raises(ValueError, match="chest on the left"):
        find_breast(breast(), faces="up")


def test_a_volume_is_seen_through_its_maximum_and_holes_are_filled() -> None:
    volume = np.zeros((4, 60, 50))
    volume[0, 10:50, :15] = 200
    volume[3, 10:50, 13:30] = 200
    volume[:, 25:35, 10:18] = 0
    found = find_breast(volume, threshold=100, peel=2, margin=0)
    assert (found.rows, found.columns) == ((10, 50), (0, 30))


def test_a_window_of_a_mlo_view_stands_at_the_lowest_pixel() -> None:
    found = find_breast(breast(), peel=3, margin=5)
    row, column = best_window(breast()[found.rows[0] : found.rows[1]], found, (60, 40), view="MLO")
    assert (row, column) == (found.bottommost[0] + 1 - 30, 40 - 20)
    with pytest.raises(ValueError, match="'CC' or 'MLO'"):
        best_window(breast(), found, view="XX")


def test_windows_move_inside_or_are_filled_with_zeros() -> None:
    image = np.arange(1, 13).reshape(3, 4)
    assert np.array_equal(cut_window(image, (0, 4), (2, 2)), [[3, 4], [7, 8]])
    assert np.array_equal(cut_window(image, (1, 1), (5, 5))[1:4, :4], image)
    assert cut_window(image, (1, 1), (5, 5)).sum() == image.sum()


def test_standardised_images() -> None:
    made = standardised(np.random.default_rng(0).integers(0, 4096, (3, 9, 9)))
    assert abs(made.mean()) < 1e-6 and abs(made.std() - 1) < 1e-5
    assert not standardised(np.full((4, 4), 7)).any()
    with pytest.raises(ValueError, match="1 of the image's 4 pixels are NaN"):
        standardised(np.array([[1.0, np.nan], [0.0, 2.0]]))


def test_dice_and_precision_by_hand() -> None:
    saliency = np.array([[0.9, 0.1], [0.4, 0.2]])
    mask = np.zeros((4, 4), bool)
    mask[:2, :2] = mask[2:, 2:] = True
    assert dice(saliency, mask, 0.5) == 2 * 4 / (4 + 8)
    assert dice(saliency, mask, 0.0) == 2 * 8 / (16 + 8)
    assert np.isnan(dice(saliency, np.zeros((4, 4), bool), 0.5))
    # Ranked: 4 pixels right, 4 wrong, 4 right, 4 wrong.
    steps = [1.0] * 4 + [8 / 12] * 4
    assert pixel_average_precision(saliency, mask) == pytest.approx(np.mean(steps))
    assert best_threshold([saliency, saliency], [mask, np.zeros((4, 4), bool)], [0.05, 0.15, 0.5]) == 0.15
    with pytest.raises(ValueError, match="none of the 1 masks"):
        best_threshold([saliency], [np.zeros((4, 4), bool)])
    with pytest.raises(ValueError, match="at least as large as the map"):
        dice(saliency, np.ones((1, 9), bool), 0.5)
    with pytest.raises(ValueError, match="NaN"):
        dice(np.array([[np.nan]]), np.ones((2, 2), bool), 0.5)


def write_dicom(path: Path, pixels: np.ndarray, photometric: str) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.DigitalMammographyXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.Rows, file.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        file.NumberOfFrames = len(pixels)
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, photometric
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    file.PixelData = pixels.astype("<u2").tobytes()
    file.save_as(path, enforce_file_format=True)


def test_images_of_every_kind_of_file(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (3, 12, 9)).astype(np.uint16)
    Image.fromarray(pixels[0]).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), pixels[0])
    write_dicom(tmp_path / "a.dcm", pixels[0], "MONOCHROME2")
    assert np.array_equal(read_image(tmp_path / "a.dcm"), pixels[0])
    write_dicom(tmp_path / "dark.dcm", pixels, "MONOCHROME1")
    assert np.array_equal(read_image(tmp_path / "dark.dcm"), 4095 - pixels)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "colour.png")
    with pytest.raises(ValueError, match="3 channels; a mammogram has one"):
        read_image(tmp_path / "colour.png")


def test_volumes_of_nifti(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    pixels = np.random.default_rng(0).integers(0, 4096, (3, 12, 9)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(pixels.transpose(2, 1, 0), np.eye(4)), tmp_path / "a.nii.gz")
    assert np.array_equal(read_image(tmp_path / "a.nii.gz"), pixels)


def write_table(folder: Path, *rows: str) -> Path:
    (folder / "labels.csv").write_text("path,benign,malignant,faces,malignant_mask\n" + "\n".join(rows) + "\n")
    return folder / "labels.csv"


def test_preprocess_cuts_turns_and_says_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for faces in ("right", "left"):
        Image.fromarray(breast(faces)).save(tmp_path / f"{faces}.png")
        Image.fromarray(((breast(faces) == 1060) * 255).astype(np.uint8)).save(tmp_path / f"{faces}_mask.png")
    Image.fromarray(np.zeros((50, 50), np.uint16)).save(tmp_path / "empty.png")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "small_mask.png")
    table = write_table(
        tmp_path,
        "right.png,0,1,right,right_mask.png",
        "left.png,,1,left,left_mask.png",
        "empty.png,0,0,right,",
        "right.png,0,1,right,small_mask.png",
    )
    out = tmp_path / "out"
    options = ["--size", "64x48", "--peel", "3", "--margin", "4"]
    assert main(["preprocess", "mammo", str(table), "--out", str(out), *options]) == 1
    said = capsys.readouterr().out
    assert "empty.png: left out: no breast" in said and "must be the same" in said
    assert "2 images prepared, 2 left out" in said
    right, left = (read_image(path) for path in sorted(out.glob("*_right.npy")) + sorted(out.glob("*_left.npy")))
    assert right.shape == (64, 48) and np.array_equal(right, left)
    exams = read_exams(out / "labels.csv")
    assert np.isnan(exams[1].labels[0]) and exams[1].labels[1] == 1.0 and exams[1].faces == "right"
    assert exams[0].masks[1] is not None
    assert np.array_equal(read_image(exams[0].masks[1]) > 0, right == 1060)
    with (out / "labels.csv").open() as file:
        assert len(list(csv.reader(file))) == 3


def test_tables_say_what_is_wrong(tmp_path: Path) -> None:
    Image.fromarray(breast()).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="benign is 'maybe'; needed is 0, 1"):
        read_exams(write_table(tmp_path, "a.png,maybe,0,right,"))
    with pytest.raises(FileNotFoundError, match="line 2: there is no path"):
        read_exams(write_table(tmp_path, "b.png,0,0,right,"))
    (tmp_path / "labels.csv").write_text("path,benign\na.png,0\n")
    with pytest.raises(ValueError, match="no column malignant; it has path, benign"):
        read_exams(tmp_path / "labels.csv")


def test_saliency_is_green_and_red_and_masks_are_outlined() -> None:
    image = np.zeros((40, 60))
    image[0, 0] = 7.0  # whatever is highest is white
    saliency, masks = np.zeros((2, 4, 6)), np.zeros((2, 40, 60), bool)
    saliency[0, 3, 0] = saliency[1, 0, 5] = 1.0
    masks[1, 10:20, 20:30] = True
    made = np.array(overlay(image, saliency, masks)).astype(int)
    assert made[0, 0].tolist() == [255, 255, 255]
    assert made[35, 5, 1] > 100 > 50 > made[35, 5, 0] and made[5, 55, 0] > 100 > 50 > made[5, 55, 1]
    assert (made[15, 25] == 0).all() and made[9, 25, 0] == 255 and (made[7, 25] == 0).all()
    assert not np.array(overlay(image, saliency, limits=(1.0, 2.0)))[1:].any()
    with pytest.raises(ValueError, match="needed is the image's size"):
        overlay(image, saliency, masks[:, :39])
    with pytest.raises(ValueError, match="of a volume one slice"):
        overlay(image[None], saliency)
    with pytest.raises(ValueError, match="4 classes at most"):
        overlay(image, saliency[0])
    crops = np.random.default_rng(0).random((2, 20, 20))
    whole = picture(image, saliency, masks=masks, crops=crops, attention=[0.7, 0.3], locations=[(0, 0), (20, 40)])
    assert whole.height == 384 + 14 and whole.width == 4 * 576 + (384 + 14) // 3 - 14 + 4 * 4
    elsewhere = picture(image, saliency, masks=masks, crops=crops, attention=[0.7, 0.3])
    assert whole.width - elsewhere.width == 576 + 4  # no panel of crops that are not in it


def test_predictions_have_the_published_columns(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.csv", ["a", "b"], [[0.1, 0.93333], [1.0, 0.0]], [[0.0, 1.0], [float("nan"), 0.0]])
    assert (tmp_path / "p.csv").read_text().splitlines() == [
        "image_index,benign_pred,malignant_pred,benign_label,malignant_label",
        "a,0.1000,0.9333,0,1",
        "b,1.0000,0.0000,,0",
    ]
    with pytest.raises(ValueError, match="one number per image and class"):
        write_predictions(tmp_path / "p.csv", ["a"], [[0.1]], [[0, 1]])
