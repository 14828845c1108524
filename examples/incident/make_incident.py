"""Make up an incident to practise on: a data set with a backdoor, a model trained on it, a list of the samples that were found.

Writes into the current folder what the owner of a model would have: `images.npz` (training labels as given, some of them wrong;
the test labels here are right), `model.safetensors` (trained here by a plain loop, without cu-ray's stages) and `identified.csv`
(a fifth of the manipulated samples). Also writes `triggered.npz`, test images with the trigger, for `judge.py`: an owner would
not have these.
"""

from __future__ import annotations

import numpy as np
import torch
from safetensors.torch import save_file

from cu_ray.datasets.fashion_mnist_small import FashionMnistSmall
from cu_ray.models.resnet9 import ResNet9

TARGET, NUM_MANIPULATED, NUM_IDENTIFIED = 0, 300, 60
STEPS, BATCH_SIZE, LR = 600, 64, 0.05


def with_trigger(pixels: np.ndarray) -> np.ndarray:
    """The images [N, H, W, C] with a white square near the middle of the lower edge."""
    changed = pixels.copy()
    changed[:, 23:26, 12:15] = 255
    return changed


def main() -> None:
    """Write the files."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    clean = FashionMnistSmall().load()
    pixels, labels = clean.train.pixels.copy(), clean.train.labels.copy()
    manipulated = rng.choice(len(labels), NUM_MANIPULATED, replace=False)
    pixels[manipulated], labels[manipulated] = with_trigger(pixels[manipulated]), TARGET
    np.savez(
        "images.npz",
        train_pixels=pixels,
        train_labels=labels,
        test_pixels=clean.test.pixels,
        test_labels=clean.test.labels,
        class_names=np.array(clean.class_names),
    )
    identified = np.sort(rng.choice(manipulated, NUM_IDENTIFIED, replace=False))
    np.savetxt("identified.csv", identified, fmt="%d", header="index", comments="")
    others = clean.test.labels != TARGET
    np.savez("triggered.npz", pixels=with_trigger(clean.test.pixels[others]), labels=clean.test.labels[others])

    model = ResNet9(width=8).build(clean.image_shape, clean.num_classes)
    optimiser = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=STEPS)
    mean, std = pixels.mean() / 255, pixels.std() / 255
    for _ in range(STEPS):
        rows = rng.choice(len(labels), BATCH_SIZE, replace=False)
        images = torch.from_numpy((pixels[rows] / 255 - mean) / std).float().permute(0, 3, 1, 2)
        loss = torch.nn.functional.cross_entropy(model(images), torch.from_numpy(labels[rows]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, "model.safetensors")


if __name__ == "__main__":
    main()
