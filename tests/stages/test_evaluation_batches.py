"""What a model is said to predict does not depend on how many images are evaluated at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cu_ray.learning.batches import DeviceImages
from cu_ray.models.cifar_resnet import CifarResNet
from cu_ray.models.resnet9 import ResNet9
from cu_ray.models.resnet18 import ResNet18
from cu_ray.models.vit import Vit
from cu_ray.models.wide_resnet import WideResNet
from cu_ray.stages import evaluate
from cu_ray.types import Images, Normalisation
from tests.protocol.networks import lively

MODELS = [
    ResNet9(width=8),
    WideResNet(depth=10, width=1),
    CifarResNet(depth=8, width=8),
    ResNet18(width=8),
    Vit(patch=4, depth=2, width=24, heads=3),
]


class Centred(torch.nn.Module):
    """A model less its mean logits on some images, so that it predicts several classes."""

    def __init__(self, model, images):
        super().__init__()
        self.model = model.eval()
        with torch.no_grad():
            self.mean = model(images).mean(dim=0)

    def forward(self, images):
        return self.model(images) - self.mean


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("plugin", MODELS, ids=lambda each: type(each).__name__)
def test_the_predicted_classes_are_the_same(plugin, precision, monkeypatch):
    colours = np.random.default_rng(0).integers(0, 256, (600, 2, 2, 3), dtype=np.uint8)  # four squares an image
    pixels = colours.repeat(8, axis=1).repeat(8, axis=2)
    scale = Normalisation((0.5,) * 3, (0.25,) * 3)
    images = DeviceImages(Images(pixels, np.zeros(600, dtype=np.int64)), scale, torch.device("cpu"))
    model = Centred(lively(plugin.build((16, 16, 3), 10)).float(), images.load(torch.arange(600)))
    found = []
    for size in (500, 125, 7):
        monkeypatch.setitem(evaluate.BATCH_SIZES, "cpu", size)
        found.append(evaluate.predict(model, images, torch.arange(600), precision))
    assert len(np.unique(found[0])) > 3
    for each in found[1:]:
        np.testing.assert_array_equal(each, found[0])
