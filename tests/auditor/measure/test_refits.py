from __future__ import annotations

from pathlib import Path

import pytest

from nnaudit.measure.refits import refits
from nnaudit.targets.source import source_of

AGAIN = {
    "one encoder": """
encoder = OrdinalEncoder()
codes = encoder.fit_transform(train_df[columns])
valid_codes = encoder.fit_transform(valid_df[columns])
""",
    "an encoder for each column": """
for c in columns:
    train[c] = LabelEncoder().fit_transform(train[c])
    test[c] = LabelEncoder().fit_transform(test[c])
""",
    "of an object": """
self.scaler = StandardScaler()
self.scaler.fit(self.x_train)
self.scaler.fit(self.x_test)
""",
    "by rows": """
scaler = MinMaxScaler()
a = scaler.fit_transform(X[train])
b = scaler.fit_transform(X[val])
""",
    "codes of categories": """
for c in columns:
    train[c] = train[c].astype("category").cat.codes
    val[c] = pd.Categorical(val[c]).codes
""",
    "a vocabulary within a call": """
words = make_vocabulary(TRAIN)
train_loader = DataLoader(encode(TRAIN, words))
val_loader = DataLoader(encode(VAL, make_vocabulary(VAL)))
""",
    "a function that standardises": """
def scaled(x, past):
    mu, sigma = x.mean(0), x.std(0)
    x = (x - mu) / (sigma + 1e-8)
    return windows(x, past)
train_loader = DataLoader(scaled(train_part, 8))
test_loader = DataLoader(scaled(test_part, 8))
""",
    "a function of extremes": """
def scale(values):
    return (values - np.min(values)) / (np.max(values) - np.min(values))
a = scale(x_train)
b = scale(x_val)
""",
    "a vocabulary with a name": """
train_vocab = build_vocab(train_texts)
test_vocab = build_vocab(test_texts)
x_test = [numericalize(test_texts, test_vocab)]
""",
}

ONCE = {
    "rows that are scaled by themselves": """
def scaled(x):
    return (x - x.mean(axis=1)) / x.std(axis=1)
a, b = scaled(x_train), scaled(x_test)
""",
    "training's statistics": """
def scaled(x):
    return (x - x_train.mean(0)) / x_train.std(0)
a, b = scaled(x_train), scaled(x_test)
""",
    "statistics that may be given": """
def scaled(x, mean=None, std=None):
    return (x - x.mean(0)) / x.std(0) if mean is None else (x - mean) / std
a, b = scaled(x_train), scaled(x_test, mean, std)
""",
    "a vocabulary that is compared": """
words = build_vocab(train_texts)
unseen = set(build_vocab(val_texts)) - set(words)
print(overlap(words, build_vocab(val_texts)))
""",
    "one vocabulary": """
words = make_vocabulary(TRAIN)
val_loader = DataLoader(encode(VAL, words))
""",
    "categories that are given": """
train[c] = pd.Categorical(train[c]).codes
val[c] = pd.Categorical(val[c], categories=levels).codes
""",
    "other columns": """
codes = df["town"].astype("category").cat.codes
val["n"] = val["n"].astype("category").cat.as_ordered()
""",
    "transformed": """
encoder = OrdinalEncoder()
codes = encoder.fit_transform(train_df[columns])
valid_codes = encoder.transform(valid_df[columns])
""",
    "all rows": """
encoder = LabelEncoder()
encoder.fit(pd.concat([train["town"], test["town"]]))
""",
    "values": """
scaler = StandardScaler()
x_train = scaler.fit_transform(x_train)
values = other.fit_transform(values)
""",
    "a model": """
model = LogisticRegression()
model.fit(x_train, y_train)
model.fit(x_val, y_val)
""",
    "other classes": """
inputs = StandardScaler().fit(x_train)
shown = PCA(2).fit_transform(x_test)
""",
    "a projection for a plot": """
inputs = PCA(50).fit(x_train)
shown = PCA(2).fit_transform(val_embeddings)
""",
    "another column": """
towns = LabelEncoder().fit(train.town)
numbers = LabelEncoder().fit(test.submission_id)
""",
    "the latest rows": """
a = StandardScaler().fit(latest)
b = StandardScaler().fit(x_train)
""",
}


@pytest.mark.parametrize("text", AGAIN.values(), ids=AGAIN)
def test_what_is_fitted_again(text: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(text)
    (found,) = refits(source_of(tmp_path / "train.py"))
    assert found.first < found.line


@pytest.mark.parametrize("text", ONCE.values(), ids=ONCE)
def test_what_is_fitted_once(text: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(text)
    assert not refits(source_of(tmp_path / "train.py"))
