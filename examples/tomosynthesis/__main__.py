"""Train, compare and draw: 3D-GMIC against the maximum projection and a ResNet per slice, on synthetic volumes.

    python -m examples.tomosynthesis --out runs/tomosynthesis                  # all of it, 3 seeds
    python -m examples.tomosynthesis --out runs/pilot --pilot --seeds 100      # training and validation volumes alone

Run it in the project's folder. All settings stand in cpu.toml; nothing is chosen while it runs: the weights after the
last epoch count. The test volumes are drawn and looked at once, after every network has been trained. What was trained
before is taken from its file, so a run that was stopped goes on.

    out/SEED/MODEL.pt             the weights
    out/SEED/MODEL.csv            what it says of each test volume (predictions.csv of the published code)
    out/results.json              every AUC
    out/pictures/                 of 3D-GMIC, first seed: a GIF, the crops, and --slices N ... of a test volume
"""

from __future__ import annotations

import argparse
import json
import time
import tomllib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.pages import fill
from examples.tomosynthesis import networks, pictures, volumes
from streamingcnn.files import whole_file
from streamingcnn.mammography import write_predictions
from streamingcnn.training.checkpoint import read_tensors
from streamingcnn.training.examples import Images
from streamingcnn.training.loop import Training
from streamingcnn.training.measures import measure
from streamingcnn.training.recipe import Recipe
from streamingcnn.training.watch import Epoch, Watch

HERE = Path(__file__).parent
CLASSES = ("benign", "malignant")
#: What was wanted before anything was run: the AUC of 3D-GMIC, malignant.
BAR = 0.85
#: Added to the seed in the last epochs, so that their order and turns are not those of the first.
LAST = 1000


class Told(Watch):
    """Says how a training goes."""

    def __init__(self, said: str) -> None:
        self.said, self.began = said, time.process_time()

    def epoch(self, epoch: Epoch, better: bool) -> None:
        seconds = time.process_time() - self.began
        print(f"{self.said}, epoch {epoch.number}: loss {epoch.loss:.3f}, {seconds:.0f} s of the processor", flush=True)


def trained(name: str, seed: int, settings: dict[str, Any], training: Callable[[], Images], path: Path) -> nn.Module:
    """A network with the weights of its file, which is made where it is not there."""
    torch.manual_seed(seed)
    net = networks.make(name, settings["network"])
    if path.exists():
        net.load_state_dict(read_tensors(path))
        return net.eval()
    given = dict(settings["train"][name])
    last = given.pop("last_epochs", 0)
    told = Told(f"{networks.TITLES[name]}, seed {seed}")
    Training(net, training(), networks.loss_of(name, settings["network"]), Recipe(seed=seed, **given)).run(told)
    if last:
        # The mean of all cells has shown what to look for; the highest alone now say where, at half the rate.
        recipe = Recipe(seed=seed + LAST, **{**given, "epochs": last, "lr": given["lr"] / 2})
        Training(net, training(), networks.loss_of(name, settings["network"], last=True), recipe).run(told)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        torch.save(net.state_dict(), partial)
    return net.eval()


@torch.no_grad()
def said_of(net: nn.Module, images: Images) -> Tensor:
    """(volumes, classes), a probability each."""
    each = [networks.probabilities(net(volumes.standardised(image[None]))) for image in images.images]
    return torch.cat(each)


Results = dict[str, dict[str, dict[int, float]]]
#: By network, class and seed: the ends of the interval of 95 %.
Intervals = dict[str, dict[str, dict[int, list[float]]]]


def table(results: Results, seeds: Sequence[int], intervals: Intervals | None = None) -> str:
    """What the README shows: the AUC of each network and seed, its interval, and which bars were reached.

    >>> table({"gmic3d": {kind: {0: 0.9, 1: 0.8} for kind in CLASSES}}, [0, 1]).splitlines()[2]
    '| 3D-GMIC | malignant | 0.850 | 0.900 | 0.800 |'
    """

    def shown(name: str, kind: str, seed: int) -> str:
        if seed not in results[name][kind]:
            return "not run"
        interval = (intervals or {}).get(name, {}).get(kind, {}).get(seed)
        return f"{results[name][kind][seed]:.3f}" + (" ({:.2f} to {:.2f})".format(*interval) if interval else "")

    head = ["network", "class", "mean", *(f"seed {seed}" for seed in seeds)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, found in results.items():
        for kind in reversed(CLASSES):
            figures = [shown(name, kind, seed) for seed in seeds]
            mean = f"{np.mean(list(found[kind].values())):.3f}" if found[kind] else "not run"
            lines.append(f"| {networks.TITLES[name]} | {kind} | {' | '.join([mean, *figures])} |")
    ours = results["gmic3d"]["malignant"]
    reached = float(np.mean(list(ours.values())))
    lines += ["", f"- 3D-GMIC, malignant, at least {BAR}: {'reached' if reached >= BAR else 'MISSED'} ({reached:.3f})"]
    flat = results.get("maximum", {}).get("malignant", {})
    if both := [seed for seed in ours if seed in flat]:
        one, other = (float(np.mean([each[seed] for seed in both])) for each in (ours, flat))
        of = "" if len(both) == len(seeds) else f" of seed {', '.join(map(str, both))} alone"
        verdict = "reached" if one > other else "MISSED"
        lines.append(f"- above the maximum projection: {verdict} ({one:.3f} against {other:.3f}{of})")
    return "\n".join(lines)


def main() -> None:
    """The whole study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tomosynthesis"), help="folder (%(default)s)")
    parser.add_argument("--config", type=Path, default=HERE / "cpu.toml", help="the settings (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of weights and order (%(default)s)")
    parser.add_argument("--models", nargs="+", choices=networks.NAMES, default=list(networks.NAMES))
    parser.add_argument("--pilot", action="store_true", help="judge on validation volumes; no test volume is made")
    parser.add_argument("--trained", action="store_true", help="judge what is trained so far, and train nothing")
    parser.add_argument("--volume", type=int, default=3, help="the test volume that is drawn (%(default)s)")
    parser.add_argument("--slices", type=int, nargs="*", default=[], help="slices of it to draw one by one")
    parser.add_argument("--pages", action="store_true", help="put table and pictures beside the README")
    options = parser.parse_args()
    settings = tomllib.loads(options.config.read_text())
    torch.set_num_threads(settings["threads"])
    # A pilot's volumes are in none of the splits that figures are taken on.
    first = 1_000_000 if options.pilot else 0

    @cache
    def training() -> Images:
        """Drawn once, and not where all weights are there."""
        return volumes.examples(volumes.drawn("train", settings["volumes"], first), "train")

    files = {(s, name): options.out / str(s) / f"{name}.pt" for s in options.seeds for name in options.models}
    nets = {
        (seed, name): trained(name, seed, settings, training, path)
        for (seed, name), path in files.items()
        if path.exists() or not options.trained
    }
    split = "validation" if options.pilot else "test"
    truths = volumes.drawn(split, settings["volumes"], first)
    judged = volumes.examples(truths, split)
    results: Results = {name: {kind: {} for kind in CLASSES} for name in options.models}
    intervals: Intervals = {name: {kind: {} for kind in CLASSES} for name in options.models}
    for (seed, name), net in nets.items():
        said = said_of(net, judged)
        write_predictions(options.out / str(seed) / f"{name}.csv", judged.names, said, judged.targets)
        for number, kind in enumerate(CLASSES):
            labels = judged.targets[:, number].int().tolist()
            answers = torch.stack([1 - said[:, number], said[:, number]], 1)
            measured = measure("binary", labels, answers.numpy(), ("none", kind))
            if measured["auc"] is None:
                raise ValueError(f"the AUC of {kind} lesions cannot be had: {'; '.join(measured['notes'])}")
            results[name][kind][seed], intervals[name][kind][seed] = measured["auc"], measured["auc_interval"]
        found = results[name]["malignant"][seed]
        print(f"{networks.TITLES[name]}, seed {seed}: {split} AUC malignant {found:.3f}", flush=True)
    with whole_file(options.out / "results.json") as partial:
        partial.write_text(json.dumps({"seeds": options.seeds, **results, "intervals": intervals}, indent=1) + "\n")
    if results.get("gmic3d", {}).get("malignant"):
        print(text := table(results, options.seeds, intervals))
        if options.pages:
            fill(HERE / "README.md", "tomosynthesis", text)
    if (options.seeds[0], "gmic3d") in nets:
        folder = HERE if options.pages else options.out / "pictures"
        pictures.draw(nets[options.seeds[0], "gmic3d"], truths[options.volume], folder, options.slices)


if __name__ == "__main__":
    main()
