"""The page that a run leaves behind: what was trained, how it went, what it says of every slide.

One HTML file that needs no network: curves are drawn into it, pictures are files beside it. The demo and every run have
the same page, made of sections; each shows what its folder has, and leaves out what it has not.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamingcnn.extras import require
from streamingcnn.files import whole_file
from streamingcnn.training.study import Study
from streamingcnn.training.watch import Epoch

__all__ = ["Section", "learning_curve", "write_page", "write_report", "write_run_report"]

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
  table { border-collapse: collapse; margin: 1rem 0; }
  td, th { padding: .25rem .9rem .25rem 0; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top; }
  td.number { text-align: right; font-variant-numeric: tabular-nums; }
  tr.wrong td { color: #b00; }
  .wide { overflow-x: auto; }
  figure { margin: 1.5rem 0; } figure img, figure svg { max-width: 100%; height: auto; }
  .row { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); gap: 1rem; }
  .row figure { margin: .5rem 0; }
  figcaption { color: #555; } pre { overflow-x: auto; background: #f6f6f6; padding: 1rem; font-size: .8rem; }
</style>
<h1>{{ title }}</h1>
<table>
{% for name, value in facts.items() %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</table>
{% for section in sections %}<h2>{{ section.title }}</h2>
{% if section.drawing %}<figure>{{ section.drawing|safe }}</figure>
{% endif %}{% if section.pictures %}<div{% if section.pictures|length > 1 and section.beside %} class="row"{% endif %}>
{% for picture, caption in section.pictures %}<figure>
<img src="{{ picture|urlencode }}" alt="{{ caption }}" loading="lazy">
<figcaption>{{ caption }}</figcaption>
</figure>
{% endfor %}</div>
{% endif %}{% if section.rows %}<div class="wide"><table>
<tr>{% for name in section.header %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in section.rows %}<tr{% if loop.index0 in section.wrong %} class="wrong"{% endif %}>
{% for cell in row %}<td{% if cell is number %} class="number"{% endif %}>
{{- "%.3f"|format(cell) if cell is float else cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% endif %}{% if section.text %}<p>{{ section.text }}</p>
{% endif %}{% if section.code %}<pre>{{ section.code }}</pre>
{% endif %}{% endfor %}</html>
"""


@dataclass(frozen=True)
class Section:
    """A part of the page; what is empty is left out.

    Attributes:
        title: its heading.
        drawing: an SVG, trusted.
        pictures: paths relative to the page, with captions.
        beside: whether pictures stand beside each other.
        header, rows: a table; numbers are set to the right.
        wrong: the rows that are red.
        text, code: a paragraph, and text as it is.
    """

    title: str
    drawing: str = ""
    pictures: Sequence[tuple[str, str]] = ()
    beside: bool = False
    header: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()
    wrong: frozenset[int] = field(default_factory=frozenset)
    text: str = ""
    code: str = ""


def write_page(path: Path, title: str, facts: Mapping[str, str], sections: Sequence[Section]) -> None:
    """Write a page of sections below a table of facts.

    Raises:
        OSError: the page could not be written; nothing half-written is left.
        ModuleNotFoundError: Jinja2 is missing; the message says how to get it.
    """
    require("jinja2")
    from jinja2 import Environment, StrictUndefined

    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(_PAGE)
    text = page.render(title=title, facts=facts, sections=sections)
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_report(
    path: Path,
    result: Study,
    *,
    title: str,
    facts: Mapping[str, str],
    plan: str = "",
) -> None:
    """Write the report of a study.

    Example::

        result = study(net, cases, out)
        write_report(out / "report.html", result, title="Camelyon", facts={"test AUC": f"{result.auc:.3f}"})

    The page belongs into the study's own folder, where the pictures are. ``facts`` are shown as a table, in
    their order; ``plan`` is what ``str(net.plan(x))`` gives.

    Raises:
        OSError: the page could not be written; nothing half-written is left.
        ModuleNotFoundError: Jinja2 or matplotlib is missing; the message says how to get it.
    """
    answers = sorted(result.predictions, key=lambda each: -each.score)
    legend = "Left: probability of tumour from 0.5 to 1; right: saliency; green: truth."
    sections = [_curve_section(result.history)]
    if result.pictures:
        pictures = [(name, f"{caption}. {legend}") for name, caption in result.pictures]
        sections.append(Section("Where the network looks", pictures=pictures))
    sections.append(
        Section(
            "Every test slide",
            header=("slide", "label", "score (logit)"),
            rows=[(each.case.name, int(each.case.label), float(each.score)) for each in answers],
            wrong=frozenset(n for n, each in enumerate(answers) if (each.score > 0) != (each.case.label == 1)),
            text="Sorted by score; red: on the wrong side of 0. A threshold was not chosen, the AUC needs none.",
        )
    )
    if plan:
        sections.append(Section("The plan", code=plan))
    write_page(path, title, facts, sections)


def write_run_report(run: Path) -> Path:
    """Write ``report.html`` into the folder of a run, of what is there: curves, metrics, pictures, cases, settings.

    Example::

        write_run_report(Path("runs/x"))                         # runs/x/report.html

    Raises:
        FileNotFoundError: the folder is not that of a run.
        OSError: the page could not be written; nothing half-written is left.
        ModuleNotFoundError: Jinja2 or matplotlib is missing; the message says how to get it.
    """
    if not (run / "settings.toml").is_file():
        raise FileNotFoundError(f"{run} is not the folder of a run: it has no settings.toml")
    history = _history(run / "log.csv")
    metrics = json.loads(_text(run / "metrics.json") or "{}")
    versions = json.loads(_text(run / "versions.json") or "{}")
    bad = _rows(run / "bad_cases.csv")
    facts = {"folder": run.resolve().name, **_figures(metrics)}
    if history:
        last = history[-1]
        checked = "" if last.validation is None else f", validation {last.validation:.4f}"
        facts["epochs"] = f"{len(history)}, the last with a loss of {last.loss:.4f}{checked}"
    facts["cases left out"] = str(len(bad) + len(metrics.get("bad_cases", ())))
    for name in ("git", "torch", "device"):
        if versions.get(name):
            facts[name] = str(versions[name]) + (" (changed)" if name == "git" and versions.get("git_changed") else "")
    sections = [_curve_section(history)] if history else []
    pictures = [(n, c) for n, c in _PICTURES if (run / n).is_file()]
    if pictures:
        sections.append(Section("On the test cases", pictures=pictures, beside=True, text=" ".join(metrics["notes"])))
    sections += _overlays(run)
    sections += _cases(run, metrics)
    left_out = [(row["id"], row["reason"]) for row in bad]
    left_out += [(row["id"], row["reason"]) for row in metrics.get("bad_cases", ())]
    if left_out:
        sections.append(Section("Cases that could not be used", header=("case", "reason"), rows=left_out))
    sections.append(Section("Settings", code=_text(run / "settings.toml")))
    if versions:
        sections.append(Section("Versions", code=json.dumps(versions, indent=2)))
    path = run / "report.html"
    write_page(path, f"Run {run.resolve().name}", facts, sections)
    return path


_PICTURES = (
    ("roc.png", "ROC curve"),
    ("confusion.png", "Confusion"),
    ("values.png", "Answers against labels"),
    ("froc.png", "Lesions found against false positives"),
)
#: Measures that are shown among the facts, by their names in metrics.json.
_SHOWN = {
    "auc": "AUC",
    "quadratic_kappa": "quadratic kappa",
    "spearman": "Spearman's correlation",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "mean_absolute_error": "mean absolute error",
}
#: Rows and pictures that are shown of the worst cases.
_WORST, _OVERLAYS = 20, 12


def _figures(metrics: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for key, name in _SHOWN.items():
        if metrics.get(key) is not None:
            interval = metrics.get(f"{key}_interval")
            between = f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
            found[name] = f"{metrics[key]:.3f}{between}"
    if "froc" in metrics:
        found["FROC"] = f"{metrics['froc']['score']:.3f} on {metrics['froc']['lesions']} lesions"
    if metrics:
        found["measured on"] = f"{metrics['cases']} cases" + (
            f" of {metrics['groups']} patients" if "groups" in metrics else ""
        )
    return found


def _overlays(run: Path) -> list[Section]:
    order = [row["id"] for row in _worst(run)]
    drawn = {path.stem: path for path in sorted((run / "heatmaps").glob("*.png"))}
    names = [name for name in order if name in drawn] + [name for name in drawn if name not in order]
    pictures = [(f"heatmaps/{drawn[name].name}", name) for name in names[:_OVERLAYS]]
    if not pictures:
        return []
    text = "The hotter the denser; green: outlines, where there are any. Worst answers first."
    return [Section("Where the network looks", pictures=pictures, beside=True, text=text)]


def _worst(run: Path) -> list[dict[str, str]]:
    """The rows of predictions.csv that have a label, the worst answer first."""

    def error(row: Mapping[str, str]) -> float:
        if f"p_{row['label']}" in row:
            return 1 - float(row[f"p_{row['label']}"])
        return abs(float(row["answer"]) - float(row["label"]))

    return sorted((row for row in _rows(run / "predictions.csv") if row["label"]), key=lambda row: -error(row))


def _cases(run: Path, metrics: Mapping[str, Any]) -> list[Section]:
    worst = _worst(run)
    if not worst:
        return []
    classes = [name for name in worst[0] if name.startswith("p_")]
    words = ["id", "label", "answer"] if classes else ["id", "label"]
    numbers = classes or ["answer"]
    rows = [(*(row[name] for name in words), *(float(row[name]) for name in numbers)) for row in worst]
    header = ("case", *words[1:], *numbers)
    wrong = frozenset(n for n, row in enumerate(worst) if classes and row["answer"] != row["label"])
    more = f"The first {_WORST} of {len(worst)}; predictions.csv has them all." if len(worst) > _WORST else ""
    return [Section("Worst answers first", header=header, rows=rows[:_WORST], wrong=wrong, text=more)]


def _history(log: Path) -> list[Epoch]:
    """The epochs of a log.csv."""
    found = {}
    for row in _rows(log):
        if row.get("epoch_loss"):
            checked = float(row["validation"]) if row.get("validation") else None
            number = int(row["epoch"])
            found[number] = Epoch(number, float(row["epoch_loss"]), 0.0, checked)
    return [found[number] for number in sorted(found)]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(_text(path))))


def _curve_section(history: Sequence[Epoch]) -> Section:
    also = any(epoch.validation is not None for epoch in history)
    text = f"Mean loss of each epoch over the training slides{', and over the validation slides' if also else ''}."
    return Section("Learning curve", drawing=learning_curve(history), text=text)


def learning_curve(history: Sequence[Epoch]) -> str:
    """The mean loss of each epoch, and on the validation images where there are some, as an SVG drawing.

    Raises:
        ModuleNotFoundError: matplotlib is missing; the message says how to get it.
    """
    require("matplotlib")
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([epoch.number for epoch in history], [epoch.loss for epoch in history], marker="o", color="#2a5db0")
    checked = [(epoch.number, epoch.validation) for epoch in history if epoch.validation is not None]
    if checked:
        axes.lines[0].set_label("training")
        axes.plot(*zip(*checked, strict=True), marker="s", color="#c05020", label="validation")
        axes.legend(frameon=False)
    axes.set(xlabel="epoch", ylabel="loss", ylim=(0, 1.08 * max(axes.dataLim.y1, 1e-6)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg", metadata={"Date": None})
    text = drawing.getvalue()
    return text[text.index("<svg") :]
