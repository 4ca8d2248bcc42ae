"""A training of slides that are in memory, in one call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from streamingcnn.training.examples import Images
from streamingcnn.training.loop import Loss, Training
from streamingcnn.training.recipe import Recipe
from streamingcnn.training.watch import Bar, Epoch

__all__ = ["fit"]


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
