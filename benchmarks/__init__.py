"""What a training step costs: plain PyTorch, `torch.utils.checkpoint` and streamed, side by side."""
