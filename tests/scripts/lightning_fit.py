"""A Lightning Trainer: module, loaders, scheduler per step, accumulation by the Trainer."""

import sys

import lightning as L
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Classifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def main():
    L.seed_everything(7)
    x = torch.randn(192, 12)
    data = TensorDataset(x, x[:, :3].argmax(1))
    train, val = torch.utils.data.random_split(data, [128, 64])
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        accumulate_grad_batches=int(sys.argv[1]) if len(sys.argv) > 1 else 1,
        gradient_clip_val=1.0,
        enable_progress_bar=False,
        log_every_n_steps=5,
    )
    trainer.fit(Classifier(), DataLoader(train, 16, shuffle=True), DataLoader(val, 32))


if __name__ == "__main__":
    main()
