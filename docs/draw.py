"""The drawings of the pages, made by the library itself: `python docs/draw.py` writes docs/images/{tiles,parts}.jpg."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

from streamingcnn import StreamingModule
from streamingcnn.distributed.ownership import Division
from streamingcnn.models import resnet18
from streamingcnn.plan.report import draw
from streamingcnn.synthetic import make_slide

IMAGES = Path(__file__).parent / "images"
SIDE = 420


def tiles(picture: Image.Image) -> Image.Image:
    """Three stages of one plan over the image they read."""
    plan = StreamingModule(resnet18().eval(), tile=256).plan((1, 3, picture.height, picture.width))
    chosen = [0, 3, len(plan.stages) - 1]
    return _beside(
        [(draw(plan, picture, stage, longest=SIDE), f"stage {stage}: {plan.stages[stage].layer}") for stage in chosen]
    )


def parts(picture: Image.Image) -> Image.Image:
    """Who owns what: 4 ranks equally, 3 ranks of which one is twice as fast."""
    shown = []
    for division, title in (
        (Division((2, 2), ((1, 1), (1, 1))), "grid=(2, 2)"),
        (Division((3, 1), ((1, 2, 1), (1,))), "grid=(3, 1), weights=((1, 2, 1), (1,))"),
    ):
        drawn = picture.copy()
        pen = ImageDraw.Draw(drawn)
        for rank, ((top, bottom), (left, right)) in enumerate(division.boxes((picture.height, picture.width))):
            pen.rectangle((left, top, right - 1, bottom - 1), outline=(0, 110, 200), width=8)
            pen.rectangle((left + 12, top + 12, left + 220, top + 84), fill="white")
            pen.text((left + 24, top + 18), f"rank {rank}", fill=(0, 60, 140), font_size=52)
        shown.append((drawn, title))
    return _beside(shown)


def _beside(shown: list[tuple[Image.Image, str]]) -> Image.Image:
    page = Image.new("RGB", (len(shown) * (SIDE + 20) - 20, SIDE + 34), "white")
    pen = ImageDraw.Draw(page)
    for number, (picture, title) in enumerate(shown):
        left = number * (SIDE + 20)
        page.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, 34))
        pen.text((left, 4), title, fill="black", font_size=18)
    return page


if __name__ == "__main__":
    slide = Image.fromarray(make_slide(seed=1, tumour=True, size=(1024, 1024)).pixels())
    tiles(slide).save(IMAGES / "tiles.jpg", quality=85)
    parts(slide).save(IMAGES / "parts.jpg", quality=85)
