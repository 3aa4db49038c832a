from __future__ import annotations

from pathlib import Path

import pytest

from nnaudit.measure.metric_calls import misgiven
from nnaudit.targets.source import source_of

DECISIONS = {
    "gathered": """
from sklearn.metrics import roc_auc_score
scores = []
for x, y in loader:
    scores.append(model(x).argmax(dim=1).cpu().numpy())
    truth.append(y.numpy())
auc = roc_auc_score(np.concatenate(truth), np.concatenate(scores))
""",
    "by way of names": """
from sklearn import metrics
def evaluate():
    for x, y in loader:
        out = model(x)
        _, guess = torch.max(out, 1)
        said += guess.tolist()
    return metrics.average_precision_score(y_true=labels, y_score=said)
""",
    "a threshold": """
from sklearn.metrics import roc_curve
guess = (torch.sigmoid(model(x)) > 0.5).float()
roc_curve(y, guess.squeeze(1))
""",
    "a classifier's classes": """
from sklearn.metrics import roc_auc_score
baseline = LogisticRegression(C=0.1).fit(x, y)
roc_auc_score(y_val, baseline.predict(x_val))
""",
    "put together under its own name": """
from sklearn.metrics import roc_auc_score
said, truth = [], []
for x, y in loader:
    said.append(model(x).argmax(1))
    truth.append(y)
said, truth = torch.cat(said).numpy(), torch.cat(truth).numpy()
roc_auc_score(truth, said)
""",
    "whole numbers": """
from sklearn.metrics import roc_auc_score
roc_auc_score(y, np.round(probabilities))
""",
}

SWAPPED = {
    "precision": """
from sklearn.metrics import precision_score
precision_score(model(x).argmax(1), y)
""",
    "recall of lists": """
from sklearn.metrics import recall_score
for x, y in loader:
    said.extend(model(x).max(1)[1].tolist())
    truth.extend(y.tolist())
recall_score(said, truth, average="macro")
""",
}

RIGHT = {
    "gathered by another function": """
from sklearn.metrics import roc_auc_score
said, truth = [], []
predict_all(model, loader, said, truth)
said, truth = torch.cat(said).numpy(), torch.cat(truth).numpy()
roc_auc_score(truth, said)
""",
    "probabilities": """
from sklearn.metrics import roc_auc_score
for x, y in loader:
    scores.append(model(x).softmax(1)[:, 1])
roc_auc_score(y, torch.cat(scores))
""",
    "probabilities, decisions beside": """
from sklearn.metrics import roc_auc_score, recall_score
probability = torch.sigmoid(model(x))
decided = probability > 0.5
roc_auc_score(y, probability), recall_score(y, decided)
""",
    "labels of a threshold": """
from sklearn.metrics import roc_auc_score
y = price > 100
roc_auc_score(y, model(x))
""",
    "both decided": """
from sklearn.metrics import recall_score
recall_score(one_hot.argmax(1), model(x).argmax(1))
""",
    "labels of one-hot rows": """
from sklearn.metrics import roc_auc_score
roc_auc_score(labels.argmax(1), model(x)[:, 1])
roc_auc_score(onehot.argmax(1), y_prob)
""",
    "the same either way": """
from sklearn.metrics import accuracy_score
accuracy_score(model(x).argmax(1), y)
""",
    "one of two values": """
from sklearn.metrics import roc_auc_score
guess = model(x).argmax(1)
guess = model(x)[:, 1]
roc_auc_score(y, guess)
""",
    "another library's order": """
from torchmetrics.functional import precision_score
precision_score(model(x).argmax(1), y)
""",
    "rounded to digits": """
from sklearn.metrics import roc_auc_score
roc_auc_score(y, probability.round(decimals=4))
roc_auc_score(y, [round(p, 4) for p in np.round(probabilities, 6)])
""",
    "a function of one's own that predicts probabilities": """
from sklearn.metrics import average_precision_score
average_precision_score(frame.y, predict(model, val_set))
""",
    "what a network, a trainer or a booster predicts": """
from sklearn.metrics import roc_auc_score
roc_auc_score(y, torch.cat(trainer.predict(model, val_loader)))
booster = lightgbm.train(parameters, rows)
roc_auc_score(y, booster.predict(x))
""",
    "of another function": """
from sklearn.metrics import roc_auc_score
def decide(score):
    score = score.argmax(1)
def rank(score):
    return roc_auc_score(y, score)
""",
}


@pytest.mark.parametrize(
    ("text", "swapped"),
    [*((text, False) for text in DECISIONS.values()), *((text, True) for text in SWAPPED.values())],
    ids=[*DECISIONS, *SWAPPED],
)
def test_a_metric_is_given_the_wrong_thing(text: str, swapped: bool, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(text)
    (found,) = misgiven(source_of(tmp_path / "train.py"))
    assert found.swapped is swapped


@pytest.mark.parametrize("text", RIGHT.values(), ids=RIGHT)
def test_a_metric_is_given_what_it_takes(text: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(text)
    assert not misgiven(source_of(tmp_path / "train.py"))
