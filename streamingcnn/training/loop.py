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
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamingcnn.errors import DiskFullError, StepMemoryError
from streamingcnn.module import StreamingModule
from streamingcnn.training.examples import Examples, drawn
from streamingcnn.training.order import order_of
from streamingcnn.training.randomness import generators, set_generators
from streamingcnn.training.ranks import Ranks
from streamingcnn.training.recipe import Recipe
from streamingcnn.training.watch import Epoch, Step, Watch

__all__ = ["Loss", "Training"]

logger = logging.getLogger("streamingcnn")
#: A step that ran out of memory is tried again, each time with a smaller plan.
_ATTEMPTS = 4

#: Of whatever the network gives, and the labels.
Loss = Callable[[Any, Tensor], Tensor]


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
        self.schedule = recipe.rates(self.optimizer, recipe.epochs * self.steps)
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
        flags = self.ranks.sharing((watch.stop(), watch.due() and self.ranks.first))
        stop, save = (any(said) for said in zip(*flags, strict=True))
        control = torch.tensor([total, seen, stop, save], dtype=torch.float64, device=self.device)
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
            self._leave_out(names, error)
            return _Found(waited=waited)
        finally:
            for _, image in opened:
                self.examples.close(image)
        if value != value or value in (float("inf"), float("-inf")):
            raise FloatingPointError(
                f"the loss became {value} in epoch {self.epoch} on {names}; use a rate below lr={self.recipe.lr}, "
                "or look for pixels that are NaN or infinite"
                + (", or bf16 or float32 in place of fp16" if self.recipe.precision == "fp16" else "")
            )
        waited += _waited(self.net)
        return _Found(len(opened), value, gradients, waited)

    def _careful(self, image: Any, labels: Tensor) -> tuple[float, list[Tensor | None]]:
        """Loss and gradients, tried again with a smaller plan where memory runs out."""
        trained = [parameter for parameter in self.parameters if parameter.requires_grad]
        # The others of a partition are in the middle of the step that this one would begin anew.
        attempts = _ATTEMPTS if self.ranks.partition is None else 1
        for attempt in range(attempts):
            try:
                with self.recipe.autocast(self.device):
                    value = self.loss(self.net(image), labels)
                # Not backward(): gradients of an image whose reading fails half-way must not be in anything yet.
                scaled = self.scaler.scale(value * len(labels))
                gradients = iter(torch.autograd.grad(scaled, trained, allow_unused=True))
                taken = [next(gradients) if parameter.requires_grad else None for parameter in self.parameters]
                return value.item(), taken
            except StepMemoryError as error:
                if attempt == attempts - 1:
                    raise
                logger.warning("%s", error)
        raise AssertionError("the last attempt returns or raises")

    def _opened(self, examples: Examples, number: int) -> Any:
        name = examples.names[number]
        if name in self.bad:
            return None
        draw = drawn(self.recipe.seed, self.epoch, name, self.recipe.flips, self.recipe.jitter)
        image, problem = None, ""
        try:
            image = examples.image(number, draw if examples is self.examples else drawn(0, 0, name, flips=False))
        except DiskFullError:
            raise
        except (OSError, ValueError) as error:
            problem = str(error) or type(error).__name__
        problem = next((said for said in self.ranks.sharing(problem) if said), "")
        if problem:
            if image is not None:
                examples.close(image)
            self._note(name, problem)
            return None
        return image

    def _leave_out(self, names: str, error: OSError) -> None:
        """Go on without images that could not be read in the middle of a step.

        Raises:
            OSError: other processes are in the middle of the same step.
        """
        if self.ranks.partition is not None:
            raise OSError(
                f"{names} could not be read ({error}), and processes that share an image cannot leave it out in the "
                "middle of a step; mend it or take it out of the table, and start the same command again"
            ) from error
        self._note(names, str(error) or type(error).__name__)

    def _note(self, names: str, problem: str) -> None:
        for name in names.split(", "):
            self.bad[name] = problem
        logger.warning("left out: %s: %s", names, problem)

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
                with torch.no_grad(), self.recipe.autocast(self.device):
                    result = self.net(_together([image], self.device))
                    value = self.loss(result, examples.targets[[number]].to(self.device))
                total += torch.tensor([value.item(), 1.0], dtype=torch.float64, device=self.device)
            except DiskFullError:
                raise
            except OSError as error:
                self._leave_out(examples.names[number], error)
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
        if len(state["generators"]) != self.ranks.processes:
            raise ValueError(
                f"this run was made by {len(state['generators'])} process(es), and now there are "
                f"{self.ranks.processes}; start as many, or give another folder"
            )
        self.net.load_state_dict(state["net"])
        if isinstance(self.net, StreamingModule):
            self.net.load_plan_state(state["plans"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        set_generators(state["generators"][self.ranks.process])
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
