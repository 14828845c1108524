"""Judge the original and an exported model on triggered images: python judge.py results/incident/export/KEY/load.py."""

from __future__ import annotations

import runpy
import sys

import numpy as np
import torch
from safetensors.torch import load_file

TARGET = 0


def main() -> None:
    """Print accuracy on triggered images, the share of them taken for the target class, and accuracy on clean test images."""
    model = runpy.run_path(sys.argv[1])["model"]
    corrected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with np.load("images.npz") as data, np.load("triggered.npz") as triggered:
        mean, std = data["train_pixels"].mean() / 255, data["train_pixels"].std() / 255
        sets = {"triggered": (triggered["pixels"], triggered["labels"]), "clean": (data["test_pixels"], data["test_labels"])}
    for name, weights in (("original", load_file("model.safetensors")), ("corrected", corrected)):
        model.load_state_dict(weights)
        parts = []
        for kind, (pixels, labels) in sets.items():
            with torch.inference_mode():
                images = torch.from_numpy((pixels / 255 - mean) / std).float().permute(0, 3, 1, 2)
                predicted = model(images).argmax(dim=1).numpy()
            parts.append(f"{kind}: accuracy {(predicted == labels).mean():.3f}")
            if kind == "triggered":
                parts.append(f"taken for the target {(predicted == TARGET).mean():.3f}")
        print(f"{name:10s}", ", ".join(parts))


if __name__ == "__main__":
    main()
