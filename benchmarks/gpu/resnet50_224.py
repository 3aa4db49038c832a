"""ResNet-50 on colour pictures of 224 x 224, in bfloat16: steps that fill a GPU."""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet50

device = "cuda" if torch.cuda.is_available() else "cpu"


class Blobs(Dataset):
    """A square of the class's own colour, at a random place, on noise."""

    def __init__(self, rows: int, seed: int) -> None:
        own = torch.Generator().manual_seed(seed)
        self.seed = seed
        self.labels = torch.randint(10, (rows,), generator=own)
        self.colours = 2 * torch.rand(10, 3, generator=torch.Generator().manual_seed(0)) - 1

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        own = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        picture = torch.randn(3, 224, 224, generator=own)
        top, left = torch.randint(160, (2,), generator=own).tolist()
        label = self.labels[index]
        picture[:, top : top + 64, left : left + 64] += 3 * self.colours[label][:, None, None]
        return picture, label


torch.manual_seed(0)
workers = 8 if device == "cuda" else 0
train_loader = DataLoader(Blobs(4000, 1), batch_size=64, shuffle=True, num_workers=workers)
val_loader = DataLoader(Blobs(500, 2), batch_size=64, num_workers=workers)
model = resnet50(num_classes=10).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.05)

for epoch in range(3):
    model.train()
    for x, y in train_loader:
        with torch.autocast(device, torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x.to(device)), y.to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        right = sum((model(x.to(device)).argmax(1).cpu() == y).sum().item() for x, y in val_loader)
    print(f"epoch {epoch}: accuracy {right / 500:.3f}")
