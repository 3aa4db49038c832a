"""skorch: a NeuralNetClassifier with its own split."""

import numpy as np
import torch
from skorch import NeuralNetClassifier
from torch import nn

torch.manual_seed(0)
X = np.random.default_rng(0).normal(size=(120, 12)).astype(np.float32)
y = X[:, :3].argmax(1).astype(np.int64)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(12, 32)
        self.out = nn.Linear(32, 3)

    def forward(self, X):
        return self.out(torch.relu(self.hidden(X)))


net = NeuralNetClassifier(
    Net, criterion=nn.CrossEntropyLoss, optimizer=torch.optim.Adam, lr=0.02, batch_size=16,
    max_epochs=2, iterator_train__shuffle=True,
)  # fmt: skip
net.fit(X, y)
