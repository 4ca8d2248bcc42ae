"""What is segmented: volumes made on demand, or the front and the back half of a brain; both from NIfTI files."""

import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamingcnn import open_image
from streamingcnn.boxes import Box, shift, sizes
from streamingcnn.files import whole_file
from streamingcnn.synthetic import abdomen

#: What a window of a CT shows: these Hounsfield units become -1 and 1.
WINDOW = (-160, 240)
#: Millimetres between the voxels of a made volume.
SPACING = 1.5
#: Files of the brain's template and of its two tissues, as the nilearn package has them.
BRAIN = tuple(f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz" for kind in ("t1", "gm", "wm"))
BRAIN_CLASSES = ("background", "grey matter", "white matter")


@dataclass(frozen=True)
class Volume:
    """A box of a NIfTI file, with a class for each voxel.

    Attributes:
        name: of what is written about it.
        box: of the file, along (z, y, x).
        affine: from (x, y, z) of a voxel of the box to millimetres.
        pixels: the image (1, 1, ...) and the classes (1, ...) of any box of the file.
    """

    name: str
    box: Box
    affine: NDArray[np.float64]
    pixels: Callable[[Box], tuple[Tensor, Tensor]]

    @property
    def shape(self) -> tuple[int, ...]:
        """With batch and channels, as the network takes it."""
        return (1, 1, *sizes(self.box))

    def read(self, part: Box) -> tuple[Tensor, Tensor]:
        """A part of it; nothing else is in memory."""
        return self.pixels(shift(part, [low for low, _ in self.box]))


def made(folder: Path, seeds: Sequence[int], size: tuple[int, int, int], write: bool) -> list[Volume]:
    """Volumes of an abdomen in `folder`, written there where they are missing."""
    found = []
    for seed in seeds:
        name = f"abdomen_{'x'.join(map(str, size))}_{seed:03d}"
        image, label = folder / f"{name}.nii", folder / f"{name}_label.nii"
        if write and not (image.exists() and label.exists()):
            folder.mkdir(parents=True, exist_ok=True)
            drawn = abdomen.make_abdomen(seed, size)
            write_nifti(image, drawn.image, _affine(size))
            write_nifti(label, drawn.label, _affine(size))
        found.append(Volume(name, tuple((0, n) for n in size), _affine(size), _Abdomen(image, label)))
    return found


def brain(folder: Path, step: int) -> tuple[Volume, Volume]:
    """The front half of the template, and its back half, cut to multiples of `step` voxels.

    Its left half is its right half mirrored (the template is symmetric), so front and back are what can be told apart.
    """
    files = [open_image(folder / name) for name in BRAIN]
    extents, affine = files[0].shape[1:], files[0].affine
    if affine[1, 1] <= 0:
        raise ValueError(f"{folder / BRAIN[0]}: its second axis should grow to the front, as in the template")
    (top, bottom), _, (left, right) = (_middle(0, extent, step) for extent in extents)
    halves = (_middle(extents[1] // 2, extents[1], step), _middle(0, extents[1] // 2, step))
    made = []
    for name, along in zip(("front", "back"), halves, strict=True):
        box = ((top, bottom), along, (left, right))
        moved = affine.copy()
        moved[:3, 3] = (affine @ [left, along[0], top, 1])[:3]
        made.append(Volume(f"brain_{name}", box, moved, _Brain(files)))
    return made[0], made[1]


class _Abdomen:
    def __init__(self, image: Path, label: Path) -> None:
        self.paths = (image, label)

    def __call__(self, box: Box) -> tuple[Tensor, Tensor]:
        image, label = (open_image(path).read(box) for path in self.paths)
        low, high = WINDOW
        return (image.float() - low).div_((high - low) / 2).sub_(1).clamp_(-1, 1)[None], label.long()


class _Brain:
    def __init__(self, files: Sequence) -> None:
        self.files = files

    def __call__(self, box: Box) -> tuple[Tensor, Tensor]:
        image, grey, white = (file.read(box).float() / 255 for file in self.files)
        return (2 * image - 1)[None], torch.stack([1 - grey - white, grey, white]).argmax(0)


def _middle(low: int, high: int, step: int) -> tuple[int, int]:
    """As much of an interval, in its middle, as is a multiple of `step`."""
    left = (high - low) % step
    return low + left // 2, high - (left - left // 2)


def _affine(size: Sequence[int]) -> NDArray[np.float64]:
    """x grows to the left and y to the back, against NIfTI's way; z upwards; 0 is in the middle."""
    depth, height, width = size
    made = np.diag([-SPACING, -SPACING, SPACING, 1.0])
    made[:3, 3] = SPACING / 2 * np.array([width - 1, height - 1, 1 - depth])
    return made


def write_nifti(path: Path, voxels: NDArray, affine: NDArray[np.float64]) -> None:
    """Write voxels (z, y, x) as a whole file or none; packed where its name ends in .gz."""
    content = nibabel.Nifti1Image(voxels.T, affine).to_bytes()
    with whole_file(path) as partial:
        partial.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
