"""No DataLoader: get_batch() draws a batch, one ahead; the model computes its loss; own lr plan."""

import math

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(1337)
data = torch.arange(4000) % 13
block, batch_size, max_iters = 8, 6, 60


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(13, 16)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(16, 13)

    def forward(self, idx, targets=None):
        logits = self.head(self.drop(self.emb(idx)))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.view(-1, 13), targets.view(-1))


def get_batch():
    at = torch.randint(len(data) - block - 1, (batch_size,))
    x = torch.stack([data[i : i + block] for i in at])
    y = torch.stack([data[i + 1 : i + 1 + block] for i in at])
    return x, y


def get_lr(it):
    return 0.05 * min(1.0, (it + 1) / 10) * (0.5 + 0.5 * math.cos(math.pi * min(it / max_iters, 1)))


@torch.no_grad()
def estimate_loss():
    model.eval()
    losses = torch.stack([model(*get_batch())[1] for _ in range(3)])
    model.train()
    return losses.mean()


model = Tiny()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
X, Y = get_batch()
iter_num = 0
while True:
    for group in optimizer.param_groups:
        group["lr"] = get_lr(iter_num)
    if iter_num % 20 == 0:
        print(iter_num, estimate_loss())
    logits, loss = model(X, Y)
    X, Y = get_batch()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    iter_num += 1
    if iter_num > max_iters:
        break
