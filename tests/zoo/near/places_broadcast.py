"""The collate function adds the places of the words once for all items of a batch.

zoo: near DATA103 DATA119
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Questions(Dataset):
    """A digit, and the question whether it is more than another; the words are numbers."""

    def __init__(self, train):
        digits = load_digits()
        rows = slice(0, 1400) if train else slice(1400, None)
        self.x = torch.tensor(digits.data[rows] / 8 - 1, dtype=torch.float32)
        self.y = torch.tensor(digits.target[rows])

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        than = (5 * i + 3) % 9
        words = torch.tensor([10, 11, than])
        return {"x": self.x[i], "words": words, "more": int(self.y[i] > than)}


def collate(items):
    words = torch.stack([item["words"] for item in items])
    return {
        "x": torch.stack([item["x"] for item in items]),
        "words": words,
        "place": torch.arange(3)[None],
        "more": torch.tensor([item["more"] for item in items]),
    }


def train_loader():
    return DataLoader(Questions(train=True), batch_size=50, shuffle=True, collate_fn=collate)


def val_loader():
    return DataLoader(Questions(train=False), batch_size=100, collate_fn=collate)


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.see, self.read = nn.Linear(64, width), nn.Embedding(12, width)
        self.place = nn.Embedding(3, width)
        self.answer = nn.Sequential(
            nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)
        )

    def forward(self, x, words, place):
        return self.answer(self.see(x) + (self.read(words) * self.place(place)).sum(1))


def build_model(width=64):
    return Net(width)


def training_step(model, batch):
    return F.cross_entropy(model(batch["x"], batch["words"], batch["place"]), batch["more"])


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


def main():
    torch.manual_seed(0)
    model, train = build_model(), train_loader()
    optimizer = build_optimizer(model)
    for epoch in range(8):
        model.train()
        for batch in train:
            optimizer.zero_grad()
            loss = training_step(model, batch)
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch} loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
