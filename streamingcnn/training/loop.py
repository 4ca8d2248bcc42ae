"""The training loop: read, step, say how it goes; stop anywhere and go on from there to the bit.

It knows nothing of tiles. A streamed network is an ordinary module, so this loop trains a plain one just as
well.

All that happens follows from the seed and from the state, which :meth:`Training.state` gives after any step: order and
turns of an epoch are functions of seed and epoch, not of a generator that was moved on.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamingcnn.errors import DiskFullError, StepMemoryError
from streamingcnn.module import StreamingModule
from streamingcnn.training.examples import Examples, Images, drawn
from streamingcnn.training.order import order_of
from streamingcnn.training.randomness import generators, set_generators
from streamingcnn.training.ranks import Ranks
from streamingcnn.training.watch import Bar, Epoch, Step, Watch

__all__ = ["Epoch", "Recipe", "Training", "fit"]

logger = logging.getLogger("streamingcnn")
#: A step that ran out of memory is tried again, each time with a smaller plan.
_ATTEMPTS = 4
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

#: Of whatever the network gives, and the labels.
Loss = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How to train: AdamW, clipped gradients, and the numbers below.

    Attributes:
        epochs: passes over the images.
        batch: images that go through the network together; they must be tensors of one size, unless it is 1.
        accumulate: batches whose gradients are added for one step of the optimiser, on each process.
        lr: the rate at its height.
        schedule: onecycle, cosine or constant.
        weight_decay: of AdamW.
        clip: the largest norm of all gradients together.
        frozen_epochs: epochs at the start in which the trunk stays as it is, in eval mode.
        patience: epochs without a lower validation loss after which training ends; 0: never.
        precision: float32, bf16 or fp16.
        flips, jitter: whether images are turned and reflected, how far gain and offset of a channel move.
        seed: of order, turns and jitter.
    """

    epochs: int
    batch: int = 1
    accumulate: int = 1
    lr: float = 3e-4
    schedule: str = "onecycle"
    weight_decay: float = 1e-4
    clip: float = 1.0
    frozen_epochs: int = 0
    patience: int = 0
    precision: str = "float32"
    flips: bool = True
    jitter: float = 0.0
    seed: int = 0


class Training:
    """A training that can be stopped after any step and gone on with.

    Example::

        training = Training(net, examples, loss, Recipe(epochs=10))
        history = training.run()

    Args:
        net: any module, streamed or not.
        examples: what to train on.
        loss: of the network's result and the labels, (N,) or (N, labels), a scalar: the mean over the images.
        recipe: how.
        validation: what to choose the best epoch on.
        trunk: the part of the network that ``frozen_epochs`` is about.
        ranks: the processes that train together.
    """

    def __init__(
        self,
        net: nn.Module,
        examples: Examples,
        loss: Loss,
        recipe: Recipe,
        *,
        validation: Examples | None = None,
        trunk: nn.Module | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.net, self.examples, self.loss, self.recipe = net, examples, loss, recipe
        self.validation, self.trunk, self.ranks = validation, trunk, ranks or Ranks()
        self.device = next(net.parameters()).device
        self.group = recipe.batch * recipe.accumulate * self.ranks.count
        if not len(examples.names):
            raise ValueError("there is nothing to train on")
        self.steps = -(-len(examples.names) // self.group)
        self.parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
        self._in_trunk = [p for p in ([] if trunk is None else trunk.parameters()) if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, recipe.lr, weight_decay=recipe.weight_decay)
        self.schedule = _schedule(recipe, self.optimizer, recipe.epochs * self.steps)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "fp16")
        self.epoch, self.step, self.finished = 1, 0, False
        self.history: list[Epoch] = []
        #: What could not be read: why, by name.
        self.bad: dict[str, str] = {}
        self._loss, self._seen, self._seconds = 0.0, 0, 0.0
        self._best, self._since_best = float("inf"), 0

    @property
    def effective_batch(self) -> int:
        """Images to a step of the optimiser, over all processes."""
        return self.group

    # ------------------------------------------------------------------------- running

    def run(self, watch: Watch | None = None) -> list[Epoch]:
        """Train to the end, or until ``watch`` says stop; the epochs that are complete.

        Raises:
            FloatingPointError: a loss became infinite or NaN; the message says where.
            ValueError: no image of an epoch could be read.
        """
        watch = watch or Watch()
        while not self.finished:
            self._mode()
            order = order_of(self.examples.targets, self.recipe.seed, self.epoch)
            while self.step < self.steps:
                start = time.perf_counter()
                report = self._one(order[self.step * self.group : (self.step + 1) * self.group], start, watch)
                self.step += 1
                self._seconds += time.perf_counter() - start
                watch.step(report)
                if report.stop or report.save:
                    self._saved(watch, best=False)
                if report.stop:
                    return self.history
            self._end_epoch(watch)
        return self.history

    def _mode(self) -> None:
        """Train mode, with the trunk frozen in the first epochs."""
        frozen = self.trunk is not None and self.epoch <= self.recipe.frozen_epochs
        self.net.train()
        if frozen and self.trunk is not None:
            self.trunk.eval()
        for parameter in self._in_trunk:
            parameter.requires_grad_(not frozen)

    def _one(self, numbers: Sequence[int], start: float, watch: Watch) -> Step:
        """One step of the optimiser, from the images of a group that can be read."""
        sums: list[Tensor | None] = [None] * len(self.parameters)
        mine = numbers[self.ranks.number :: self.ranks.count]
        total, seen, waited = 0.0, 0, 0.0
        for low in range(0, len(mine), self.recipe.batch):
            found = self._gradients(mine[low : low + self.recipe.batch])
            waited += found.waited
            if found.count:
                sums = [_added(a, b) for a, b in zip(sums, found.gradients, strict=True)]
                total, seen = total + found.loss * found.count, seen + found.count
        control = torch.tensor([total, seen, watch.stop(), watch.due() and self.ranks.first], dtype=torch.float64)
        control = control.to(self.device)
        if self.ranks.count > 1:
            sums = [
                torch.zeros_like(parameter) if gradient is None and parameter.requires_grad else gradient
                for parameter, gradient in zip(self.parameters, sums, strict=True)
            ]
        self.ranks.sum([control, *(gradient for gradient in sums if gradient is not None)])
        total, count, stop, save = control.tolist()
        rate = float(self.optimizer.param_groups[0]["lr"])
        if count:
            for parameter, gradient in zip(self.parameters, sums, strict=True):
                parameter.grad = None if gradient is None else gradient / count
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()
            self.ranks.from_first(self.net.buffers())
            self._loss, self._seen = self._loss + total, self._seen + int(count)
        with warnings.catch_warnings():
            # A first step without images, or with an overflow in fp16, moves the rate and not the weights.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self.schedule.step()
        return Step(
            number=(self.epoch - 1) * self.steps + self.step + 1,
            of=self.recipe.epochs * self.steps,
            epoch=self.epoch,
            loss=total / count if count else float("nan"),
            lr=rate,
            images=int(count),
            seconds=time.perf_counter() - start,
            waited=waited,
            bad=len(self.bad),
            stop=stop > 0,
            save=save > 0,
        )

    def _gradients(self, numbers: Sequence[int]) -> _Found:
        """Loss and gradients of images together; without those that cannot be read."""
        start = time.perf_counter()
        opened = [(number, image) for number in numbers if (image := self._opened(self.examples, number)) is not None]
        waited = time.perf_counter() - start
        if not opened:
            return _Found(waited=waited)
        names = ", ".join(self.examples.names[number] for number, _ in opened)
        labels = self.examples.targets[[number for number, _ in opened]].to(self.device)
        buffers = [(buffer, buffer.clone()) for buffer in self.net.buffers()]
        try:
            value, gradients = self._careful(_together([image for _, image in opened], self.device), labels)
        except DiskFullError:
            raise
        except OSError as error:  # a region that cannot be read, in forward or in backward
            for buffer, before in buffers:
                buffer.copy_(before)
            self._note(names, error)
            return _Found(waited=waited)
        finally:
            for _, image in opened:
                self.examples.close(image)
        if value != value or value in (float("inf"), float("-inf")):
            raise FloatingPointError(
                f"the loss became {value} in epoch {self.epoch} on {names}; use a smaller rate than lr={self.recipe.lr}"
                ", or look for pixels that are NaN or infinite"
                + (", or bf16 or float32 in place of fp16" if self.recipe.precision == "fp16" else "")
            )
        waited += _waited(self.net)
        return _Found(len(opened), value, gradients, waited)

    def _careful(self, image: Any, labels: Tensor) -> tuple[float, list[Tensor | None]]:
        """Loss and gradients, tried again with a smaller plan where memory runs out."""
        trained = [parameter for parameter in self.parameters if parameter.requires_grad]
        for attempt in range(_ATTEMPTS):
            try:
                with self._autocast():
                    value = self.loss(self.net(image), labels)
                # Not backward(): gradients of an image whose reading fails half-way must not be in anything yet.
                scaled = self.scaler.scale(value * len(labels))
                gradients = iter(torch.autograd.grad(scaled, trained, allow_unused=True))
                taken = [next(gradients) if parameter.requires_grad else None for parameter in self.parameters]
                return value.item(), taken
            except StepMemoryError as error:
                if attempt == _ATTEMPTS - 1:
                    raise
                logger.warning("%s", error)
        raise AssertionError("the last attempt returns or raises")

    def _opened(self, examples: Examples, number: int) -> Any:
        name = examples.names[number]
        if name in self.bad:
            return None
        draw = drawn(self.recipe.seed, self.epoch, name, self.recipe.flips, self.recipe.jitter)
        try:
            return examples.image(number, draw if examples is self.examples else drawn(0, 0, name, flips=False))
        except DiskFullError:
            raise
        except (OSError, ValueError) as error:
            self._note(name, error)
            return None

    def _note(self, names: str, error: Exception) -> None:
        for name in names.split(", "):
            self.bad[name] = str(error) or type(error).__name__
        logger.warning("left out: %s: %s", names, error)

    def _autocast(self) -> Any:
        dtype = _DTYPES.get(self.recipe.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    # ------------------------------------------------------------------------- an epoch's end

    def _end_epoch(self, watch: Watch) -> None:
        for found in self.ranks.gathered(self.bad):
            self.bad |= found
        if all(name in self.bad for name in self.examples.names):
            reasons = "\n".join(f"  - {name}: {why}" for name, why in list(self.bad.items())[:10])
            raise ValueError(f"none of {len(self.examples.names)} training images can be read:\n{reasons}")
        start = time.perf_counter()
        checked = None if self.validation is None else self._validate(self.validation)
        self._seconds += time.perf_counter() - start
        done = Epoch(self.epoch, self._loss / max(1, self._seen), self._seconds, checked)
        self.history.append(done)
        better = checked is None or checked < self._best
        if checked is not None:
            self._best, self._since_best = (checked, 0) if better else (self._best, self._since_best + 1)
        patient = not self.recipe.patience or self._since_best < self.recipe.patience
        self.finished = self.epoch == self.recipe.epochs or not patient
        self.epoch, self.step = self.epoch + 1, 0
        self._loss, self._seen, self._seconds = 0.0, 0, 0.0
        watch.epoch(done, better)
        self._saved(watch, best=better)

    def _validate(self, examples: Examples) -> float:
        """The mean loss over the validation images that can be read; infinite where none can."""
        self.net.eval()
        total = torch.zeros(2, dtype=torch.float64, device=self.device)
        for number in range(self.ranks.number, len(examples.names), self.ranks.count):
            image = self._opened(examples, number)
            if image is None:
                continue
            try:
                with torch.no_grad(), self._autocast():
                    result = self.net(_together([image], self.device))
                    value = self.loss(result, examples.targets[[number]].to(self.device))
                total += torch.tensor([value.item(), 1.0], dtype=torch.float64, device=self.device)
            except DiskFullError:
                raise
            except OSError as error:
                self._note(examples.names[number], error)
            finally:
                examples.close(image)
        self.ranks.sum([total])
        return float(total[0] / total[1]) if total[1] else float("inf")

    # ------------------------------------------------------------------------- state

    def _saved(self, watch: Watch, best: bool) -> None:
        state = self.state()
        if self.ranks.first:
            watch.save(state, best)

    def state(self) -> dict[str, Any]:
        """All that a run is gone on with; every process has to ask for it."""
        bad = {name: why for found in self.ranks.gathered(self.bad) for name, why in found.items()}
        return {
            "net": {name: tensor.detach().cpu().clone() for name, tensor in self.net.state_dict().items()},
            "plans": self.net.plan_state() if isinstance(self.net, StreamingModule) else {},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "generators": self.ranks.gathered(generators()),
            "epoch": self.epoch,
            "step": self.step,
            "finished": self.finished,
            "loss": [self._loss, self._seen, self._seconds],
            "best": [self._best, self._since_best],
            "history": [asdict(epoch) for epoch in self.history],
            "bad": bad,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: it was made by another number of processes.
        """
        if len(state["generators"]) != self.ranks.count:
            raise ValueError(
                f"this run was made by {len(state['generators'])} process(es), and now there are {self.ranks.count}; "
                "start as many, or give another folder"
            )
        self.net.load_state_dict(state["net"])
        if isinstance(self.net, StreamingModule):
            self.net.load_plan_state(state["plans"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        set_generators(state["generators"][self.ranks.number])
        self.epoch, self.step, self.finished = state["epoch"], state["step"], state["finished"]
        self._loss, self._seen, self._seconds = state["loss"]
        self._best, self._since_best = state["best"]
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.bad = dict(state["bad"])


@dataclass(frozen=True)
class _Found:
    """What a batch gave: how many images, their mean loss, the sum of their gradients, seconds of waiting."""

    count: int = 0
    loss: float = 0.0
    gradients: Sequence[Tensor | None] = ()
    waited: float = 0.0


def fit(
    net: nn.Module,
    images: Sequence[Tensor],
    labels: Sequence[float],
    loss: Loss,
    *,
    epochs: int,
    batch: int = 2,
    lr: float = 3e-3,
    weight_decay: float = 1e-4,
    clip: float = 1.0,
    seed: int = 0,
    progress: bool = True,
) -> list[Epoch]:
    """Train a network on slides that are in memory: AdamW, one-cycle, clipped gradients, slides turned and reflected.

    Example::

        history = fit(StreamingModule(trunk), images, labels, slide_loss, epochs=10)

    Args:
        net: any module, streamed or not; it is left in training mode.
        images: (3, height, width) uint8 each; of one size, unless ``batch`` is 1.
        labels: one number per image.
        loss: of the network's result and the labels (N,), a scalar.
        epochs: passes over the images.
        batch: images per step.
        lr: the peak of the one-cycle schedule.
        clip: the largest norm of all gradients together.
        seed: of the order and the turns; the same seed gives the same run.
        progress: whether to show a bar with loss, tiles per second and the memory of the process.

    Raises:
        ValueError: images and labels differ in number, there are none, or sizes differ in a batch.
        FloatingPointError: the loss became infinite or NaN; the message says where.
    """
    examples = Images(images, labels)
    sizes = {tuple(image.shape[-2:]) for image in images} if batch > 1 else set()
    if len(sizes) > 1:
        raise ValueError(f"slides of {len(sizes)} sizes, such as {sorted(sizes)[:3]}, do not stack: use batch=1")
    recipe = Recipe(epochs, batch, lr=lr, weight_decay=weight_decay, clip=clip, seed=seed)
    training = Training(net, examples, loss, recipe)
    if not progress:
        return training.run()
    with Bar(net, (batch, *images[0].shape)) as bar:
        return training.run(bar)


def _schedule(recipe: Recipe, optimizer: torch.optim.Optimizer, total: int) -> torch.optim.lr_scheduler.LRScheduler:
    rates = torch.optim.lr_scheduler
    if recipe.schedule == "onecycle":
        return rates.OneCycleLR(optimizer, recipe.lr, total_steps=total)
    if recipe.schedule == "cosine":
        return rates.CosineAnnealingLR(optimizer, total)
    return rates.ConstantLR(optimizer, factor=1.0)


def _added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _waited(net: nn.Module) -> float:
    """Seconds that the last forward and backward of a streamed network stood still for pixels."""
    reading = getattr(getattr(net, "last_run", None), "reading", None)
    return float(getattr(reading, "waited", 0.0))


def _together(images: Sequence[Any], device: torch.device) -> Any:
    """A batch: tensors are stacked, a source goes alone."""
    if isinstance(images[0], Tensor):
        return torch.stack(list(images)).to(device)
    if len(images) > 1:
        raise ValueError("sources do not stack; use batch=1 and accumulate")
    return images[0]
