"""The page of a run: what is on it, that it needs no network, and how it looks in a browser."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from streamingcnn.cli.main import main
from streamingcnn.training.report import Section, write_page, write_run_report

from .trained import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, table = train(tmp_path_factory.mktemp("report"), "--head", "mean")
    (out / "bad_cases.csv").write_text("id,reason\nbroken <1>,the file is damaged\n")
    assert main(["evaluate", str(out), str(table), "--heatmaps", "2", "--draws", "50"]) == 0
    return out


def test_the_page_has_curve_figures_overlays_worst_and_bad_cases_and_settings(run: Path) -> None:
    page = (run / "report.html").read_text()
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        "Learning curve",
        "On the test cases",
        "Where the network looks",
        "Worst answers first",
        "Cases that could not be used",
        "Settings",
        "Versions",
    ]
    assert page.count("<svg") == 1
    assert "broken &lt;1&gt;" in page
    assert "tests/trained.py:small" in page.replace("\\", "/")
    with (run / "predictions.csv").open() as file:
        assert all(row["id"] in page for row in csv.DictReader(file))


def test_the_page_needs_no_network_and_every_picture_is_there(run: Path) -> None:
    page = (run / "report.html").read_text()
    loaded = re.findall(r'(?:src|href)\s*=\s*"([^"#]*)"', page)
    assert len(loaded) == 2 + 2  # ROC and confusion, and two overlays
    for name in loaded:
        assert not re.match(r"\w+:|//", name)
        assert (run / name).is_file()
    assert "<script" not in page


def test_worst_answers_stand_first(run: Path) -> None:
    page = (run / "report.html").read_text()
    table = page[page.index("Worst answers first") :]
    with (run / "predictions.csv").open() as file:
        rows = sorted(csv.DictReader(file), key=lambda row: float(row[f"p_{row['label']}"]))
    places = [table.index(f"<td>{row['id']}</td>") for row in rows]
    assert places == sorted(places)


def test_a_run_that_has_only_begun_has_a_page_too(run: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(run / "settings.toml", begun)
    page = write_run_report(begun).read_text()
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Settings"]
    assert main(["report", str(run), str(begun)]) == 0


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 1
    assert "is not the folder of a run: it has no settings.toml" in capsys.readouterr().err


def test_what_is_shown_is_escaped(tmp_path: Path) -> None:
    section = Section(
        "a <b>", header=("<x>",), rows=[("<y>",)], text="<z>", code="<script>", pictures=[("a b.png", "<c>")]
    )
    write_page(tmp_path / "page.html", "<t>", {"<f>": "<v>"}, [section])
    page = (tmp_path / "page.html").read_text()
    for text in ("<t>", "<f>", "<v>", "<x>", "<y>", "<z>", "<script>", "<c>", "a <b>"):
        assert text not in page
        assert text.replace("<", "&lt;").replace(">", "&gt;") in page
    assert 'src="a%20b.png"' in page


def test_a_browser_shows_all_of_it(run: Path, tmp_path: Path) -> None:
    """In headless Chromium: every picture has pixels, nothing is wider than the page, nothing was fetched."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("there is no Chromium here")
    shot = tmp_path / "page.png"
    base = [
        browser,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path}/p",
    ]
    probe = run / "probe.html"  # the page, with a script at its end that writes what it measures into the title
    page = (run / "report.html").read_text().replace(' loading="lazy"', "")
    script = """<script>addEventListener("load", () => { document.title = JSON.stringify({
        blind: [...document.images].filter(i => !i.naturalWidth).length, images: document.images.length,
        wide: document.documentElement.scrollWidth - innerWidth,
        fetched: performance.getEntriesByType("resource").filter(e => !e.name.startsWith("file:")).length
    }) })</script>"""
    probe.write_text(page + script)
    try:
        done = subprocess.run(
            [*base, "--window-size=1100,900", "--dump-dom", probe.as_uri()], capture_output=True, text=True, timeout=120
        )
        (said,) = re.findall(r"<title>(.*?)</title>", done.stdout)
        assert said == '{"blind":0,"images":4,"wide":0,"fetched":0}'
        subprocess.run(
            [*base, "--window-size=1100,2400", f"--screenshot={shot}", probe.as_uri()], capture_output=True, timeout=120
        )
    finally:
        probe.unlink()
    with Image.open(shot) as picture:
        assert picture.size == (1100, 2400)
        colours = picture.convert("RGB").resize((110, 240)).getcolors(100_000)
        assert colours is not None and len(colours) > 500  # slides under their heat, and not a white page
    assert Path(shot).stat().st_size > 50_000
