"""Autocast to bf16 and a GradScaler, unscaling and clipping; inputs normalised on the device."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
images = torch.randint(0, 256, (128, 3, 8, 8), dtype=torch.uint8)
labels = (images.float().mean((1, 2, 3)) > 127.5).long()
loader = DataLoader(TensorDataset(images, labels), batch_size=16, shuffle=True)
model = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 2)).to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
scaler = torch.amp.GradScaler(device, init_scale=1024.0)
criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
for epoch in range(2):
    for data, target in loader:
        data = (data.to(device).float() / 255 - 0.5) / 0.25
        optimizer.zero_grad()
        with torch.autocast(device, dtype=torch.bfloat16):
            output = model(data)
            loss = criterion(output, target.to(device))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
