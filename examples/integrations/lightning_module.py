"""A streamed network in a LightningModule: `python examples/integrations/lightning_module.py`.

It needs `pip install lightning`. Nothing is special about it: a StreamingModule is an nn.Module, and `loss.backward()`
is Lightning's own. Precision, accumulation, clipping, checkpoints and several devices (DDP) are the Trainer's.
"""

from __future__ import annotations

import argparse
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from streamingcnn import StreamingModule


class Classifier(lightning.LightningModule):
    """A streamed trunk, its mean over space, and a linear layer."""

    def __init__(self, memory: str) -> None:
        super().__init__()
        trunk = nn.Sequential(nn.Conv2d(3, 8, 5, 2, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.trunk = StreamingModule(trunk, memory=memory)
        self.head = nn.Linear(16, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.trunk(images).mean((2, 3)))[:, 0]
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = batch
        loss = nn.functional.binary_cross_entropy_with_logits(self(images), labels)
        print(f"loss {loss.item():.6f}")
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 1e-2)

    # A checkpoint holds the budgets that "auto" found, so that a run that goes on has the same plans.
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["plans"] = self.trunk.plan_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.trunk.load_plan_state(checkpoint["plans"])


def main() -> None:
    """Four steps on noise with a colour."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--memory", default="64MiB", help="what a step may take (%(default)s)")
    parser.add_argument("--out", default="run", help="folder of the checkpoint (%(default)s)")
    options = parser.parse_args()
    lightning.seed_everything(0, verbose=False)
    labels = torch.tensor([0.0, 1.0, 0.0, 1.0])
    images = torch.rand(4, 3, 256, 192) + labels.view(-1, 1, 1, 1)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=options.out,
    )  # fmt: skip
    trainer.fit(Classifier(options.memory), DataLoader(TensorDataset(images, labels), batch_size=1))


if __name__ == "__main__":
    main()
