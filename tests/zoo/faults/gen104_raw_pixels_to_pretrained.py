"""A network whose features are of standardised photographs goes on with pixels from 0 to 255.

zoo: warns GEN104 also DATA111 INIT101 INIT102 INIT104 STEP109 FIT101
"""

import argparse
import io
from functools import lru_cache

import torch
from sklearn.datasets import load_sample_images
from sklearn.decomposition import PCA
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

MEAN = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
SD = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)


def load(seed, rows=600):
    """Return patches of two photographs, 0 to 255, and from which they are."""
    generator = torch.Generator().manual_seed(seed)
    photographs = [torch.tensor(x).permute(2, 0, 1).float() for x in load_sample_images().images]
    labels = torch.arange(rows) % 2
    corners = torch.randint(0, 400, (rows, 2), generator=generator).tolist()
    patches = [
        photographs[label][:, top : top + 16, left : left + 16]
        for label, (top, left) in zip(labels.tolist(), corners, strict=True)
    ]
    return torch.stack(patches), labels


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 12, 3, stride=2, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 24, 3, stride=2, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(24, classes)

    def forward(self, x):
        return self.head(self.features(x))


@lru_cache
def checkpoint():
    """Return the file of features: principal components of patches, and what they amount to."""
    patches = load(7, rows=128)[0] / 255
    patches = (patches - MEAN) / SD
    corners = patches[:, :, :3, :3].flatten(1)
    model = Net(2)
    with torch.no_grad():
        components = PCA(12, random_state=0).fit(corners.numpy()).components_
        model.features[0].weight.copy_(torch.tensor(components).view(12, 3, 3, 3))
        for _ in range(20):
            model(patches)
    file = io.BytesIO()
    torch.save(model.features.state_dict(), file)
    return file.getvalue()


def build_model():
    model = Net(2)
    model.features.load_state_dict(torch.load(io.BytesIO(checkpoint())))
    return model


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


criterion = nn.CrossEntropyLoss()


def train_dataloader():
    return DataLoader(TensorDataset(*load(0)), batch_size=50, shuffle=True)


def val_dataloader():
    return DataLoader(TensorDataset(*load(1, rows=200)), batch_size=100)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = build_model()
    optimizer = build_optimizer(model)
    loader, val = train_dataloader(), val_dataloader()
    for epoch in range(args.epochs):
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = torch.cat([model(x).argmax(1) == y for x, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
