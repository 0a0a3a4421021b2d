"""Training and evaluation in plain PyTorch; no Ray."""
