from __future__ import annotations

from pathlib import Path

import pytest

from nnaudit.measure.metric_code import (
    batch_means,
    last_batches,
    stale_bests,
    unreset_metrics,
    wrong_choices,
)
from nnaudit.targets.source import Source, source_of


def source(text: str, folder: Path) -> Source:
    file = folder / "train.py"
    file.write_text(text)
    return source_of(file)


WORST = {
    "the highest loss": """
if val_loss > best_loss:
    best_loss = val_loss
    torch.save(model.state_dict(), "best.pt")
""",
    "the lowest accuracy": """
if best is None or self.best_acc >= metrics["acc"]:
    self.best_acc = metrics["acc"]
    state = copy.deepcopy(model)
""",
    "set with a counter": """
if val_loss > best_loss:
    best_loss, waited = val_loss, 0
    torch.save(model.state_dict(), "best.pt")
""",
    "the highest loss for an accuracy": """
if val_loss > best_acc:
    best_acc = val_loss
    torch.save(model.state_dict(), "best.pt")
""",
    "the highest value of a loss": """
val = sum(loss_fn(model(x), y).item() for x, y in val_loader) / len(val_loader)
if val > best:
    best = val
    torch.save(model.state_dict(), "best.pt")
""",
    "a callback": "ModelCheckpoint(monitor='val_loss', mode='max')",
    "a callback's default": """
from lightning.pytorch.callbacks import EarlyStopping
stop = EarlyStopping(monitor="val_accuracy", patience=3)
""",
    "a callback's first argument": "EarlyStopping('val_loss', mode='max')",
    "a trainer's default": "TrainingArguments(metric_for_best_model='eval_perplexity')",
    "a trainer": "TrainingArguments(metric_for_best_model='eval_f1', greater_is_better=False)",
}

RIGHT = {
    "no patience left": """
if val_loss > best_loss:
    waited += 1
    if waited > 5:
        torch.save(net.state_dict(), "last.pt")
else:
    best_loss = val_loss
    torch.save(net.state_dict(), "best.pt")
""",
    "the lowest loss": """
if val_loss < best_loss:
    best_loss = val_loss
    torch.save(model.state_dict(), "best.pt")
""",
    "the lowest loss by an old name": """
if val_loss < best_acc:
    best_acc = val_loss
    torch.save(model.state_dict(), "best.pt")
""",
    "the worst example": """
if loss > worst_loss:
    worst_loss = loss
    torch.save(x, "hardest.pt")
""",
    "a turned loss": """
if neg_loss > best_neg_loss:
    best_neg_loss = neg_loss
    torch.save(model.state_dict(), "best.pt")
""",
    "nothing is kept": """
if val_loss > best_loss:
    patience += 1
else:
    best_loss = val_loss
    torch.save(model.state_dict(), "best.pt")
""",
    "what a loss divides": """
val = 1 / (1 + loss_fn(model(x), y).item())
if val > best:
    best = val
    torch.save(model.state_dict(), "best.pt")
""",
    "one of two values": """
val = loss_fn(model(x), y).item()
val = (model(x) > 0).float().mean()
if val > best:
    best = val
    torch.save(model.state_dict(), "best.pt")
""",
    "a callback": "ModelCheckpoint(monitor='val_acc', mode='max')",
    "a class of one's own": "EarlyStopping(monitor='val_accuracy')",
    "its first argument": "EarlyStopping('val_loss', mode='min')",
    "a trainer's default": "TrainingArguments(metric_for_best_model='eval_f1')",
    "a trainer's default for a loss": "TrainingArguments(metric_for_best_model='eval_loss')",
    "a trainer that is told elsewhere": "TrainingArguments(metric_for_best_model='wer', **more)",
}


MODULE = """
from torchmetrics.classification import BinaryF1Score

class Lit(L.LightningModule):
    def __init__(self):
        self.f1 = BinaryF1Score()

    def validation_step(self, batch, number):
        self.f1.update(*batch)

    def on_validation_epoch_end(self):
        self.log("f1", self.f1.compute())
        MORE
"""


@pytest.mark.parametrize(
    ("text", "unreset"),
    [
        (MODULE.replace("MORE", "pass"), True),
        (MODULE.replace("MORE", "self.f1.reset()"), False),
        (MODULE.replace("MORE", "[m.reset() for m in self.metrics]"), False),
        (MODULE.replace("MORE", "self.f1 = BinaryF1Score()"), False),
        (MODULE.replace("MORE", 'self.log("again", self.f1)'), False),
        (MODULE.replace("MORE", "pass").replace("on_val", "count_val"), False),
        (MODULE.replace("MORE", "pass").replace("from torchmetrics.c", "from mine.c"), False),
    ],
)
def test_a_metric_that_lightning_does_not_reset(
    text: str, tmp_path: Path, *, unreset: bool
) -> None:
    assert [name for name, _ in unreset_metrics(source(text, tmp_path))] == ["self.f1"] * unreset


@pytest.mark.parametrize("text", WORST.values(), ids=WORST)
def test_the_worst_is_kept(text: str, tmp_path: Path) -> None:
    assert wrong_choices(source(text, tmp_path))


@pytest.mark.parametrize("text", RIGHT.values(), ids=RIGHT)
def test_the_best_is_kept(text: str, tmp_path: Path) -> None:
    assert not wrong_choices(source(text, tmp_path))


STALE = """
best_acc = 0.0
for epoch in range(3):
    acc = evaluate(model)
    if acc > best_acc:
        torch.save(model.state_dict(), "best.pt")
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("best_acc = 0.0", "best_acc = float('-inf')"),
        ("best_acc", "self.best_acc"),
        ("acc > best_acc", "epoch > 1 and best_acc <= acc"),
        ("for epoch", "best_acc = torch.load('last.pt')['best_acc']\nfor epoch"),
    ],
)
def test_a_best_that_nothing_raises(old: str, new: str, tmp_path: Path) -> None:
    found = list(stale_bests(source(STALE.replace(old, new) if old else STALE, tmp_path)))
    assert [each.metric for each in found] == ["acc"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("        torch.save", "        best_acc = acc\n        torch.save"),
        ('"best.pt")', '"best.pt")\n    best_acc = max(acc, best_acc)'),
        ('"best.pt")', '"best.pt")\n        best_acc, waited = acc, 0'),
        ('"best.pt")', '"best.pt")\n        break'),
        ('"best.pt")', '"best.pt")\n    best_acc += 0.01'),
        ("best_acc = 0.0", "best_acc = 0.93"),
        ("best_acc = 0.0", "def goal(best_acc): ...\nbest_acc = 0"),
        ("best_acc = 0.0\n", ""),
        ("torch.save(model.state_dict(), ", "print("),
        ("best_acc", "least"),
    ],
    ids=[
        "raised",
        "beside",
        "two",
        "a goal",
        "by parts",
        "a bar",
        "given",
        "unknown",
        "told",
        "no",
    ],
)
def test_a_best_that_is_raised_or_is_none(old: str, new: str, tmp_path: Path) -> None:
    assert not list(stale_bests(source(STALE.replace(old, new), tmp_path)))


LAST = """
def test():
    hits, n = 0, 0
    for x, y in val_loader:
        n = len(y)
        hits = (model(x).argmax(1) == y).sum().item()
    return hits / n
"""


@pytest.mark.parametrize("loader", ["val_loader", "test_dl", "loader"])
def test_hits_of_the_last_batch(loader: str, tmp_path: Path) -> None:
    text = LAST.replace("val_loader", loader)
    text = text.replace("def test", "@torch.no_grad()\ndef test") if loader == "loader" else text
    assert [each.metric for each in last_batches(source(text, tmp_path))] == ["hits"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("hits = (model", "hits += (model"),
        ("y).sum().item()", "y).sum().item()\n        print(hits)"),
        ("y).sum().item()", "y).sum().item()\n        total += hits"),
        ("y).sum().item()", "y).sum().item()\n        break"),
        ("y).sum().item()", "y).sum().item()\n        loss.backward()"),
        ("return hits / n", "return model"),
        ("(model(x).argmax(1) == y).sum()", "model(x).sum()"),
        ("val_loader", "loader"),
    ],
    ids=["added up", "shown", "used", "one batch", "training", "never read", "no hits", "any rows"],
)
def test_hits_that_are_not_of_the_last_batch_alone(old: str, new: str, tmp_path: Path) -> None:
    assert not list(last_batches(source(LAST.replace(old, new), tmp_path)))


MEANS = {
    "gathered": """
for x, y in val_loader:
    scores.append(f1_score(y, model(x).argmax(1), average="macro"))
""",
    "by way of a name": """
for x, y in tqdm(loader):
    auc = roc_auc_score(y, model(x)[:, 1])
    total += auc * len(y)
""",
    "logged": """
class Lit:
    def validation_step(self, batch, i):
        self.log("val_f1", binary_f1_score(self(batch[0]), batch[1]), on_epoch=True)
""",
    "logged by way of a name": """
class Lit:
    def validation_step(self, batch, i):
        f1 = binary_f1_score(self(batch[0]), batch[1])
        self.log("val_f1", f1)
""",
    "the value of an object": """
class Lit:
    def __init__(self):
        self.f1 = MulticlassF1Score(num_classes=3)
    def validation_step(self, batch, i):
        self.log("val_f1", self.f1(self(batch[0]), batch[1]))
""",
    "of one's own": """
for x, y in val_loader:
    total += macro_f1(model(x), y)
""",
    "perplexity": """
for x, y in val_loader:
    loss = loss_fn(model(x), y)
    val_ppl += torch.exp(loss).item()
""",
    "hits in a meter": """
class Meter:
    def update(self, value, n=1):
        self.sum += value * n
        self.count += n
        self.avg = self.sum / self.count
acc = Meter()
for x, y in loader:
    hits = (model(x).argmax(1) == y).sum().item()
    acc.update(hits)
""",
    "a sum of hits": """
hits = sum((net(x).argmax(1) == y).sum().item() for x, y in loader) / len(loader)
""",
    "hits": """
for x, y in test_loader:
    hits += (model(x).argmax(1) == y).sum().item()
print(100.0 * hits / len(test_loader))
""",
    "hits of one of several loaders": """
test_loader = DataLoader(rows, 64)
for x, y in tqdm(self.loaders["val"], leave=False):
    hits += (model(x).argmax(1) == y).sum().item()
print(hits / len(self.loaders["val"]))
""",
    "by class": """
for x, y in val_loader:
    for c in range(classes):
        scores.append(roc_auc_score(y == c, model(x)[:, c]))
""",
}

WHOLE = {
    "a sum of hits": """
acc = sum((net(x).argmax(1) == y).sum().item() for x, y in loader) / len(loader.dataset)
""",
    "a sum of means": """
acc = sum((net(x).argmax(1) == y).float().mean() for x, y in loader) / len(loader)
""",
    "of all rows": """
for x, y in val_loader:
    outputs.append(model(x))
print(f1_score(targets, torch.cat(outputs)))
""",
    "of epochs": """
for epoch in range(len(loader)):
    history.append(f1_score(targets, predict()))
""",
    "an object, logged": """
class Lit:
    def __init__(self):
        self.f1 = MulticlassF1Score(num_classes=3)
        self.accuracy = MulticlassAccuracy(num_classes=3, average="micro")
    def validation_step(self, batch, i):
        self.f1(self(batch[0]), batch[1])
        self.log("val_f1", self.f1)
        self.log("val_acc", self.accuracy(self(batch[0]), batch[1]))
""",
    "perplexity of all": """
for x, y in val_loader:
    total += loss_fn(model(x), y).item() * len(x)
ppl = math.exp(total / rows)
""",
    "hits in a meter, with their number": """
class Meter:
    def update(self, value, n=1):
        self.sum += value * n
        self.avg = self.sum / self.count
acc = Meter()
for x, y in loader:
    hits = (model(x).argmax(1) == y).sum().item()
    acc.update(hits / len(y), len(y))
    acc.update((model(x).argmax(1) == y).float().mean())
""",
    "a counter": """
class Counter:
    def update(self, value, n=1):
        self.total += value
hits = Counter()
for x, y in loader:
    hits.update((model(x).argmax(1) == y).sum().item())
""",
    "accuracy of equal batches": """
for x, y in loader:
    total += (model(x).argmax(1) == y).float().mean()
print(total / len(loader))
""",
    "rows": """
for x, y in loader:
    hits += (model(x).argmax(1) == y).sum().item()
print(hits / len(loader.dataset), hits / len(loader) / size, hits / size / len(loader))
""",
    "rows of a data set whose loader is made in the loop's head": """
for x, y in DataLoader(val_set, batch_size=512):
    hits += (model(x).argmax(1) == y).sum().item()
acc = sum((net(x).argmax(1) == y).sum() for x, y in DataLoader(val_set, 512)) / len(val_set)
print(hits / len(val_set))
""",
    "rows of a loader's data set": """
for x, y in val_loader.dataset:
    hits += (model(x[None]).argmax(1) == y).sum().item()
print(hits / len(val_loader.dataset))
""",
    "batches of one row": """
test_loader, train_loader = DataLoader(rows, shuffle=False), DataLoader(rows, 64)
for x, y in test_loader:
    hits += (model(x).argmax(1) == y).sum().item()
print(hits / len(test_loader))
""",
    "several loaders": """
for name, loader in test_loaders.items():
    results.append(roc_auc_score(*predict(model, loader)))
for train_loader, val_loader in fold_loaders:
    results.append(f1_score(*fit(train_loader, val_loader)))
""",
    "by row": """
for x, y in val_loader:
    for truth, scores in zip(y, model(x)):
        precisions.append(average_precision_score(truth, scores))
    for i in range(len(y)):
        precisions.append(average_precision_score(y[i], model(x)[i]))
""",
}


@pytest.mark.parametrize("text", MEANS.values(), ids=MEANS)
def test_a_mean_over_batches(text: str, tmp_path: Path) -> None:
    (mean,) = batch_means(source(text, tmp_path))
    assert mean.hits is ("hits" in text)


@pytest.mark.parametrize("text", WHOLE.values(), ids=WHOLE)
def test_a_metric_of_all_rows(text: str, tmp_path: Path) -> None:
    assert not batch_means(source(text, tmp_path))
