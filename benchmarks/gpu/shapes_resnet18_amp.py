"""ResNet-18 on grey 28 x 28 pictures of ten textures, in mixed precision with a scaler."""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet18

device = "cuda" if torch.cuda.is_available() else "cpu"


class Textures(Dataset):
    """A wave of the class's own direction and frequency, at a random phase, under noise."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self.labels = torch.randint(10, (rows,), generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        label = self.labels[index]
        own = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        angle = label.item() * torch.pi / 10
        grid = torch.arange(28) / 28 - 0.5
        along = grid[:, None] * torch.tensor(angle).sin() + grid * torch.tensor(angle).cos()
        wave = (25 * along + 6.28 * torch.rand((), generator=own)).sin()
        return (wave + 0.5 * torch.randn(28, 28, generator=own)).unsqueeze(0), label


torch.manual_seed(0)
train_loader = DataLoader(Textures(8000, 1), batch_size=128, shuffle=True, num_workers=2)
val_loader = DataLoader(Textures(1000, 2), batch_size=256)
model = resnet18(num_classes=10)
model.conv1 = nn.Conv2d(1, 64, 3, padding=1, bias=False)
model.maxpool = nn.Identity()
model = model.to(device, memory_format=torch.channels_last)
optimizer = torch.optim.SGD(
    model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True
)
scheduler = torch.optim.lr_scheduler.OneCycleLR(
    optimizer, max_lr=0.1, epochs=5, steps_per_epoch=len(train_loader)
)
scaler = torch.amp.GradScaler(device, enabled=device == "cuda")
precision = torch.float16 if device == "cuda" else torch.bfloat16

for epoch in range(5):
    model.train()
    for x, y in train_loader:
        images = x.to(device, memory_format=torch.channels_last)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, precision):
            loss = nn.functional.cross_entropy(model(images), y.to(device))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
    model.eval()
    with torch.no_grad(), torch.autocast(device, precision):
        right = sum((model(x.to(device)).argmax(1).cpu() == y).sum().item() for x, y in val_loader)
    print(f"epoch {epoch}: accuracy {right / 1000:.3f}")
