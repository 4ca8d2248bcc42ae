"""The pages of a TIFF file as tests look at them."""

from __future__ import annotations

from tifffile import TiffFile, TiffPage


def pages(file: TiffFile) -> list[TiffPage]:
    """All pages with tags of their own; tifffile gives frames without, where it is asked to save time."""
    found = [page for page in file.pages if isinstance(page, TiffPage)]
    assert len(found) == len(file.pages)
    return found
