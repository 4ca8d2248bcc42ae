"""`streamingcnn doctor`: what is installed, what can be read, does it compute right? To be pasted into an issue."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

import streamingcnn
from streamingcnn.available import available
from streamingcnn.check import check
from streamingcnn.memory import format_bytes
from streamingcnn.slides.tissue import tissue_mask
from streamingcnn.sources import open_image
from streamingcnn.synthetic import make_slide, write_slide

__all__ = ["Finding", "add_parser", "findings"]

#: The oldest torch whose whole test suite was run.
TORCH = (2, 13)
#: Less than this is too little for more than a trial.
LITTLE_MEMORY, LITTLE_DISK = 4 * 2**30, 5 * 2**30
REPORT = "report this at the project's issues, with all lines"
#: What is optional: the library, what it is for, and the extra that brings it.
OPTIONAL = (
    ("imagecodecs", "JPEG, JPEG 2000 and LZW inside TIFF that OpenSlide does not open", "pip install imagecodecs"),
    ("nibabel", "NIfTI volumes", "pip install 'streamingcnn[nifti]'"),
    ("zarr", "zarr arrays", "pip install 'streamingcnn[zarr]'"),
    ("wsidicom", "DICOM slides that OpenSlide does not read", "pip install 'streamingcnn[dicom]'"),
    ("openpyxl", "tables in XLSX", "pip install 'streamingcnn[train]'"),
    ("tensorboard", "TensorBoard's logs", "pip install 'streamingcnn[train]'"),
    ("scikit-image", "tissue masks, contours of heatmaps", "pip install 'streamingcnn[slides]'"),
    ("scikit-learn", "metrics", "pip install 'streamingcnn[demo]'"),
    ("matplotlib", "curves", "pip install 'streamingcnn[demo]'"),
    ("Jinja2", "the report of a run", "pip install 'streamingcnn[demo]'"),
)


class Finding(NamedTuple):
    """One line: PASS, WARN or FAIL, what was looked at, what was found, and what to do about it."""

    verdict: str
    name: str
    text: str
    fix: str = ""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of `streamingcnn`."""
    parser = subparsers.add_parser(
        "doctor",
        help="versions, devices, formats, a short check; what to paste into an issue",
        description="Look at what is installed, what can be read and how much memory there is, and compare a streamed "
        "step with a plain one. PASS, WARN (something is not there, and not needed for all) or FAIL, each with what to "
        "do.",
        epilog="Exit code: 0, or 1 where something is FAIL.",
    )
    parser.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    """Print the findings; return 1 where one is FAIL."""
    found = []
    for finding in findings():
        found.append(finding)
        print(f"{finding.verdict}  {finding.name:<16} {finding.text}")
        if finding.fix:
            print(f"      {'':<16} -> {finding.fix}")
    counts = {verdict: sum(each.verdict == verdict for each in found) for verdict in ("PASS", "WARN", "FAIL")}
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return 1 if counts["FAIL"] else 0


def findings() -> Iterator[Finding]:
    """All findings, in the order that they are printed."""
    for look in (versions, processor, gpus, memory, disk, libraries, a_slide, exactness):
        yield from guarded(look)


def guarded(look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What a look finds; what it raises is a finding too, since a doctor must not fall ill himself."""
    try:
        yield from look()
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        yield Finding(
            "FAIL", look.__name__.replace("_", " "), text, "report this at the project's issues, with all lines"
        )


def versions() -> Iterator[Finding]:
    """This package, Python and torch."""
    yield Finding("PASS", "streamingcnn", f"{version_of('streamingcnn')}, from {Path(streamingcnn.__file__).parent}")
    at = platform.python_version()
    new = sys.version_info >= (3, 11)
    yield Finding(
        "PASS" if new else "FAIL", "Python", f"{at} on {platform.platform()}", "" if new else "use 3.11 or newer"
    )
    numbers = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    wanted = ".".join(map(str, TORCH))
    if numbers < TORCH:
        yield Finding("FAIL", "torch", torch.__version__, f"needed is {wanted} or newer: pip install 'torch>={wanted}'")
    else:
        yield Finding("PASS", "torch", torch.__version__)


def processor() -> Iterator[Finding]:
    """Cores and threads."""
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    if threads > cores:
        fix = f"set OMP_NUM_THREADS={cores}: more threads than cores slow each other down"
        yield Finding("WARN", "processor", f"cores: {cores}, threads: {threads}", fix)
    else:
        yield Finding("PASS", "processor", f"cores: {cores}, threads: {threads}, {platform.machine()}")


def gpus() -> Iterator[Finding]:
    """Devices beside the CPU."""
    if not torch.cuda.is_available():
        built = (
            f"torch was built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch was built without CUDA"
        )
        yield Finding("WARN", "GPU", f"none seen ({built})", "everything works on the CPU; for a GPU see pytorch.org")
        return
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        yield Finding("PASS", f"GPU {number}", f"{device.name}, {format_bytes(device.total_memory)}")


def memory() -> Iterator[Finding]:
    """What memory="auto" would take now."""
    devices = [torch.device("cpu"), *(torch.device("cuda", n) for n in range(torch.cuda.device_count()))]
    for device in devices:
        found = available(device)
        text = f"memory='auto' is {format_bytes(found.bytes)} on {device} ({found.source})"
        little = found.bytes < LITTLE_MEMORY
        fix = "close other programs, or give memory= and expect more tiles" if little else ""
        yield Finding("WARN" if little else "PASS", "memory", text, fix)


def disk() -> Iterator[Finding]:
    """Room for runs and for maps on disk."""
    for name, folder in (("this folder", Path.cwd()), ("temporary", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free
        little = free < LITTLE_DISK
        fix = "free some space, or give --out another place" if little else ""
        yield Finding("WARN" if little else "PASS", "disk", f"{format_bytes(free)} free in {folder} ({name})", fix)


def libraries() -> Iterator[Finding]:
    """What reads and writes files, and what is optional."""
    needed = (("openslide-python", "slides"), ("openslide-bin", "slides"), ("tifffile", "TIFF"), ("Pillow", "pictures"))
    for package, purpose in needed:
        found = version_of(package)
        missing = f"pip install {package}" if found == "missing" else ""
        yield Finding("FAIL" if missing else "PASS", package, f"{found} ({purpose})", missing)
    for package, purpose, fix in OPTIONAL:
        found = version_of(package)
        missing = fix if found == "missing" else ""
        yield Finding("WARN" if missing else "PASS", package, f"{found} ({purpose})", missing)


def a_slide() -> Iterator[Finding]:
    """Whether a slide that was just written is read back, to the pixel, and its tissue found."""
    slide = make_slide(seed=0, tumour=False, size=(512, 512))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        write_slide(slide, path)
        image = open_image(path)
        same = bool((image.read(((0, 256), (256, 512))).permute(1, 2, 0).numpy() == slide.tile(0, 1)).all())
        right = same and image.mpp is not None and abs(image.mpp[0] - 0.5) < 1e-3
        share = tissue_mask(image).share if version_of("scikit-image") != "missing" else None
        image.close()
    text = f"written and read back {'to the pixel' if right else 'WRONG'}, {image.mpp} um per pixel"
    text += "" if share is None else f", {share:.0%} tissue"
    yield Finding("PASS" if right else "FAIL", "a slide", text, "" if right else "reinstall openslide-bin and tifffile")


def exactness() -> Iterator[Finding]:
    """Whether a streamed step is a plain one, on this machine, for a network with all that is usual."""
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 8, 3, padding=1),
        nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 4, 3, 2, 1),
    )  # fmt: skip
    result = check(net, (2, 3, 211, 170), tile=64)
    torch.random.set_rng_state(torch_state)
    text = f"largest error of a step in float64 {result.worst.error:.1e}, allowed {result.tolerance:.0e}"
    yield Finding("PASS" if result.ok else "FAIL", "exactness", text, "" if result.ok else REPORT)


def version_of(package: str) -> str:
    """The version of an installed package, or the word missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing" if package != "streamingcnn" else "not installed (run from its folder)"
