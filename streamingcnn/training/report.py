"""The page that a run leaves behind: what was trained, how it went, what it says of every slide.

One HTML file that needs no network: the learning curve is drawn into it, pictures are files beside it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from streamingcnn.files import whole_file
from streamingcnn.training.extras import require
from streamingcnn.training.loop import Epoch
from streamingcnn.training.study import Study

__all__ = ["learning_curve", "write_report"]

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
  table { border-collapse: collapse; margin: 1rem 0; }
  td, th { padding: .25rem .9rem .25rem 0; text-align: left; border-bottom: 1px solid #ddd; }
  td.number { text-align: right; font-variant-numeric: tabular-nums; }
  tr.wrong td { color: #b00; }
  figure { margin: 1.5rem 0; } figure img, figure svg { max-width: 100%; height: auto; }
  figcaption { color: #555; } pre { overflow-x: auto; background: #f6f6f6; padding: 1rem; font-size: .8rem; }
</style>
<h1>{{ title }}</h1>
<table>
{% for name, value in facts.items() %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</table>
<h2>Learning curve</h2>
<figure>{{ curve|safe }}<figcaption>Mean loss of each epoch over the training slides.</figcaption></figure>
{% if pictures %}<h2>Where the network looks</h2>
{% for picture, caption in pictures %}<figure>
<img src="{{ picture|urlencode }}" alt="{{ caption }}" loading="lazy">
<figcaption>{{ caption }}. Left: probability of tumour from 0.5 to 1; right: saliency; green: truth.</figcaption>
</figure>
{% endfor %}{% endif %}
<h2>Every test slide</h2>
<table>
<tr><th>slide</th><th>label</th><th>score (logit)</th></tr>
{% for p in predictions %}<tr{% if (p.score > 0) != (p.case.label == 1) %} class="wrong"{% endif %}>
<td>{{ p.case.name }}</td><td class="number">{{ p.case.label|int }}</td>
<td class="number">{{ "%.3f"|format(p.score) }}</td></tr>
{% endfor %}</table>
<p>Sorted by score; red: on the wrong side of 0. A threshold was not chosen, the AUC needs none.</p>
{% if plan %}<h2>The plan</h2>
<pre>{{ plan }}</pre>
{% endif %}</html>
"""


def write_report(
    path: Path,
    result: Study,
    *,
    title: str,
    facts: Mapping[str, str],
    plan: str = "",
) -> None:
    """Write the report of a run.

    Example::

        result = study(net, cases, out)
        write_report(out / "report.html", result, title="Camelyon", facts={"test AUC": f"{result.auc:.3f}"})

    The page belongs into the study's own folder, where the pictures are. ``facts`` are shown as a table, in
    their order; ``plan`` is what ``str(net.plan(x))`` gives.

    Raises:
        OSError: the page could not be written; nothing half-written is left.
        ModuleNotFoundError: Jinja2 or matplotlib is missing; the message says how to get it.
    """
    require("jinja2")
    from jinja2 import Environment, StrictUndefined

    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(_PAGE)
    text = page.render(
        title=title,
        facts=facts,
        curve=learning_curve(result.history),
        predictions=sorted(result.predictions, key=lambda each: -each.score),
        pictures=result.pictures,
        plan=plan,
    )
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def learning_curve(history: Sequence[Epoch]) -> str:
    """The mean loss of each epoch as an SVG drawing.

    Raises:
        ModuleNotFoundError: matplotlib is missing; the message says how to get it.
    """
    require("matplotlib")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([epoch.number for epoch in history], [epoch.loss for epoch in history], marker="o", color="#2a5db0")
    axes.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg", metadata={"Date": None})
    text = drawing.getvalue()
    return text[text.index("<svg") :]
