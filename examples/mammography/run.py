"""GMIC and GLAM on synthetic mammograms: train every way, choose one threshold on validation, test once.

    python -m examples.mammography.run --out runs/mammography --seed 0
    python -m examples.mammography.run --out runs/mammography --seed 1
    python -m examples.mammography.table runs/mammography

All numbers of the task and of the training stand in a file (``--config``, default ``cpu.toml`` beside this one). In
``OUT/seed_0`` lie ``results.json``, ``predictions.csv`` of GMIC on the test images, pictures, and each way's weights.
A way in ``results.json`` is not run again; with ``--again`` it is judged again, with the weights it has.
"""

from __future__ import annotations

import argparse
import json
import time
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from examples.mammography import ways
from examples.mammography.data import Split, make_split
from examples.mammography.judge import CLASSES, answers_of, aucs, dices, grid_limit, precisions, threshold_of
from examples.mammography.ways import Way
from streamingcnn.files import whole_file
from streamingcnn.mammography import picture, write_predictions
from streamingcnn.training.checkpoint import read_tensors
from streamingcnn.training.examples import Images
from streamingcnn.training.loop import Training
from streamingcnn.training.randomness import seed_generators
from streamingcnn.training.recipe import Recipe
from streamingcnn.training.watch import Bar

HERE = Path(__file__).parent
Settings = dict[str, Any]


class Study:
    """One seed: its images, its folder, and the results so far."""

    def __init__(self, config: Settings, out: Path, seed: int, *, again: bool = False) -> None:
        self.again, self.config, self.out, self.seed = again, config, out / f"seed_{seed}", seed
        self.out.mkdir(parents=True, exist_ok=True)
        given = config["images"]
        drawn = {key: given[key] for key in ("size", "diameters", "contrast")}
        self.train, self.validation, self.test = (
            make_split(name, given[name], seed, **drawn) for name in ("train", "validation", "test")
        )
        self.file = self.out / "results.json"
        self.results: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}

    def run(self, name: str, make: Callable[[], Way], *, factor: int = 1, trunk_of: str | None = None) -> Way | None:
        """Train a way, choose its threshold on validation images, test it; None where that was done before."""
        done = name in self.results
        if done and not self.again:
            return None
        seed_generators(self.seed)
        way = make()
        if trunk_of is not None:
            start_from(way.net, self._weights(trunk_of))
        train, validation, test = (
            s.smaller(factor) if factor > 1 else s for s in (self.train, self.validation, self.test)
        )
        if done:
            way.net.load_state_dict(read_tensors(self._weights(name)))
            seconds = self.results[name]["seconds"]
        else:
            start = time.perf_counter()
            self._train(way, train)
            seconds = time.perf_counter() - start
            with whole_file(self._weights(name)) as path:
                torch.save(way.net.state_dict(), path)
        chosen, tested = answers_of(way, validation), answers_of(way, test)
        result: Settings = {"seconds": seconds, "dice": {}, "precision": {}, "threshold": {}}
        result["auc"], result["interval"] = aucs(tested.predictions, test)
        result["validation_auc"], _ = aucs(chosen.predictions, validation)
        for each, maps in chosen.maps.items():
            threshold = threshold_of(maps, validation)
            result["threshold"][each] = threshold
            result["dice"][each] = dices(tested.maps[each], test, threshold)
            result["precision"][each] = precisions(tested.maps[each], test)
        if name == "GMIC":
            cells = chosen.maps["GMIC's map"].shape[2:]
            self.results["grid of GMIC's map"] = {"cells": list(cells), "dice": {"grid": grid_limit(test, cells)}}
            write_predictions(self.out / "predictions.csv", test.names, tested.predictions, test.labels)
        self.results[name] = result
        with whole_file(self.file) as path:
            path.write_text(json.dumps(self.results, indent=1))
        print(f"{name}: {said(result)}", flush=True)
        return way

    def _weights(self, name: str) -> Path:
        return self.out / f"{name.lower().replace(', ', '_').replace('/', '_').replace(' ', '_')}.pt"

    def _train(self, way: Way, split: Split) -> None:
        images, labels = split.images, split.labels.tolist()
        if isinstance(way.net, ways.FromMasks):
            images = [torch.cat([i, torch.from_numpy(m).float()]) for i, m in zip(images, split.masks, strict=True)]
        examples = Images(images, labels, split.names, prepare=None)
        given = self.config["training"]
        for phase in way.phases:
            if not phase.epochs:
                continue
            way.net.requires_grad_(True)
            recipe = Recipe(
                phase.epochs,
                given["batch"],
                lr=phase.lr,
                weight_decay=given["weight_decay"],
                frozen_epochs=phase.epochs if phase.still else 0,
                seed=self.seed,
            )
            with Bar(way.net, (recipe.batch, *examples.images[0].shape)) as bar:
                Training(way.net, examples, phase.loss, recipe, trunk=phase.still).run(bar)


def start_from(net: nn.Module, path: Path) -> None:
    """Take the trunk of a GLAM that was trained before, so that two local networks see the same crops."""
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}: GLAM is trained first, without --only or with --only GLAM")
    kept = {name: tensor for name, tensor in read_tensors(path).items() if name.startswith("global_network.")}
    net.load_state_dict(kept, strict=False)


def said(result: Settings) -> str:
    """One line of a result."""
    parts = [f"AUC {name} {result['auc'][name]:.3f}" for name in CLASSES]
    parts += [f"Dice of {m} {d['benign']:.3f} / {d['malignant']:.3f}" for m, d in result["dice"].items()]
    return ", ".join([*parts, f"{result['seconds']:.0f} s"])


@torch.no_grad()
def draw(study: Study, way: Way, name: str, count: int) -> None:
    """Pictures of the first test images that hold both lesions."""
    folder = study.out / "pictures"
    folder.mkdir(exist_ok=True)
    way.net.eval()
    shown = [number for number, row in enumerate(study.test.labels.tolist()) if all(row)][:count]
    for number in shown:
        image = study.test.images[number]
        found = way.net(image[None])
        *_, saliency = way.maps(found).values()
        valid: Tensor = found.regions.valid[0]
        made = picture(
            image[0].numpy(),
            saliency[0].numpy(),
            masks=study.test.masks[number],
            crops=found.crops[0, valid, 0].numpy(),
            attention=found.attention[0, valid].tolist() if hasattr(found, "attention") else None,
            locations=[(int(y), int(x)) for y, x in found.locations[0, valid].tolist()],
        )
        with whole_file(folder / f"{name}_{study.test.names[number]}.png") as path:
            made.save(path, format="PNG")


def main() -> None:
    """Run one seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=HERE / "cpu.toml", help="the numbers (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/mammography"), help="folder (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of images, weights and order (%(default)s)")
    parser.add_argument("--only", nargs="*", metavar="WAY", help="names of the table, such as GMIC; all")
    parser.add_argument("--again", action="store_true", help="judge once more what is trained")
    args = parser.parse_args()

    config = tomllib.loads(args.config.read_text())
    study = Study(config, args.out, args.seed, again=args.again)
    memory, factor = config["training"]["memory"], config["images"]["smaller"]
    lr = {"lr": config["training"]["lr"]}
    of = {name: {**lr, **given} for name, given in config.items()}
    # In the order of what a reader asks first: how it is made, what its images are divided by, whose trunk it takes.
    all_ways: dict[str, tuple[Callable[[], Way], int, str | None]] = {
        "GMIC": (lambda: ways.gmic(of["gmic"], memory), 1, None),
        f"GMIC, 1/{factor}": (
            lambda: ways.gmic({**of["gmic"], **of["gmic_smaller"]}, memory, factor=factor),
            factor,
            None,
        ),
        "CAM": (lambda: ways.cam(of["cam"], memory), 1, None),
        "GLAM": (lambda: ways.glam(of["glam"], memory), 1, None),
        "U-Net": (lambda: ways.unet(of["unet"]), 1, None),
        **{
            name: (partial(ways.resnet, settings, layers=layers), smaller, None)
            for layers in (18, 34)
            for name, settings, smaller in (
                (f"ResNet-{layers}", of["resnet"], 1),
                (f"ResNet-{layers}, 1/{factor}", {**of["resnet"], **of["resnet_smaller"]}, factor),
            )
        },
        "GLAM, local at stride 4": (
            lambda: ways.glam({**of["glam"], "warm_epochs": 0, "epochs": 0}, memory, local="stride 4"),
            1,
            "GLAM",
        ),
    }
    for name, (make, smaller, trunk_of) in all_ways.items():
        if args.only is None or name in args.only:
            way = study.run(name, make, factor=smaller, trunk_of=trunk_of)
            if way is not None and name in ("GMIC", "GLAM"):
                draw(study, way, name.lower(), config["images"]["pictures"])


if __name__ == "__main__":
    main()
