"""Everything but the normalisation is frozen, the new output layer too.

zoo: warns MODE110 also FIT101 FIT106 FIT110
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def rows(train):
    digits = load_digits()
    part = slice(0, 1400) if train else slice(1400, None)
    x = torch.tensor(digits.images[part] / 8 - 1, dtype=torch.float32)[:, None]
    return TensorDataset(x, torch.tensor(digits.target[part]))


def train_loader():
    return DataLoader(rows(True), batch_size=50, shuffle=True)


def val_loader():
    return DataLoader(rows(False), batch_size=200)


class Net(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.classifier = nn.Linear(16 * channels, 10)

    def forward(self, x):
        return self.classifier(self.features(x))


def build_model(channels=16):
    model = Net(channels)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.requires_grad_(False)
    return model


loss_fn = nn.CrossEntropyLoss()


def build_optimizer(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)


def main():
    torch.manual_seed(0)
    model, train, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(6):
        model.train()
        for x, y in train:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = torch.cat([model(x).argmax(1) == y for x, y in val])
        print(f"epoch {epoch} loss {loss.item():.3f} accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    main()
