from __future__ import annotations

from pathlib import Path

import pytest

from nnaudit.measure.folds import shared_by_folds
from nnaudit.targets.source import source_of

TRAINING = """
    for x, y in loader:
        loss = loss_fn(net(x), y)
        loss.backward()
"""

SHARED = {
    "in the loop": f"""
net = Net()
for train, val in StratifiedKFold(5).split(X, y):
    net.train()
{TRAINING}
""",
    "in a function": f"""
def train_fold(net, loader):
    net.train()
{TRAINING}
def main():
    model = nn.Sequential(nn.Linear(4, 2))
    folds = KFold(5, shuffle=True)
    for fold, (train, val) in enumerate(folds.split(X)):
        optimizer = Adam(model.parameters())
        train_fold(model, loaders(train))
""",
    "Lightning": """
model = Net()
for train, val in KFold(5).split(X):
    trainer = L.Trainer(max_epochs=3)
    trainer.fit(model, DataLoader(train), DataLoader(val))
""",
    "transformers": """
model = BertForSequenceClassification(config)
for train, val in KFold(5).split(X):
    trainer = Trainer(model=model, train_dataset=train)
    trainer.train()
    loss.backward()
""",
}

FRESH = {
    "made in the loop": f"""
for train, val in KFold(5).split(X, y):
    net = Net()
    net.train()
{TRAINING}
""",
    "its first weights": f"""
net = Net()
first = copy.deepcopy(net.state_dict())
for train, val in KFold(5).split(X, y):
    net.load_state_dict(first)
    net.train()
{TRAINING}
""",
    "reset in a function": f"""
def train_fold(net):
    net.apply(reset_weights)
    for layer in net.children():
        layer.reset_parameters()
    net.train()
{TRAINING}
net = Net()
for train, val in KFold(5).split(X, y):
    train_fold(net)
""",
    "reset by apply": f"""
net = Net()
for train, val in KFold(5).split(X, y):
    net.apply(reset_weights)
    net.train()
{TRAINING}
""",
    "a copy": f"""
base = Net()
for train, val in KFold(5).split(X, y):
    net = copy.deepcopy(base)
    net.train()
{TRAINING}
""",
    "one fold": f"""
net = Net()
for fold, (train, val) in enumerate(KFold(5).split(X, y)):
    if fold != args.fold:
        continue
    net.train()
{TRAINING}
""",
    "time goes on": f"""
net = Net()
for train, val in TimeSeriesSplit(5).split(X, y):
    net.train()
{TRAINING}
""",
    "words": f"""
net = Net()
for line in text.split():
    net.train()
{TRAINING}
""",
    "evaluated": """
net = Net()
for train, val in KFold(5).split(X, y):
    net.eval()
    scores.append(accuracy(net(X[val]), y[val]))
""",
}


@pytest.mark.parametrize("text", SHARED.values(), ids=SHARED)
def test_a_network_goes_from_fold_to_fold(text: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(text)
    assert shared_by_folds(source_of(tmp_path / "train.py"))


@pytest.mark.parametrize("text", FRESH.values(), ids=FRESH)
def test_each_fold_has_a_network_of_its_own(text: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(text)
    assert not shared_by_folds(source_of(tmp_path / "train.py"))
