from __future__ import annotations

from pathlib import Path

import pytest

from nnaudit.measure.early_fits import EarlyFit, early_fits
from nnaudit.targets.source import source_of

EARLY = {
    "selected in place": """
X = StandardScaler().fit_transform(genes)
X = SelectKBest(f_classif, k=50).fit_transform(X, y)
X_train, X_test = train_test_split(X, test_size=0.2)
""",
    "within a function": """
def load():
    select = RFE(tree).fit(frame[["a", "b"]], y=labels)
    chosen = select.transform(frame)
    return random_split(TensorDataset(tensor(chosen), tensor(labels)), [0.8, 0.2])
""",
    "by row numbers": """
best = SelectKBest().fit(X.values, y)
rows = np.arange(len(X))
train, val = train_test_split(rows)
x_train, x_val = best.transform(X)[train], best.transform(X)[val]
""",
    "rows sliced by hand": """
X = SelectKBest(k=50).fit_transform(X, y)
order = rng.permutation(len(X))
x_train, x_val = X[order[:800]], X[order[800:]]
""",
    "a table sliced by hand": """
df = pd.DataFrame(SelectKBest().fit_transform(df, df["y"]))
train = df.iloc[:800]
val = df.iloc[800:]
""",
    "scores of the columns": """
scores, _ = f_classif(genes, outcome)
top = np.argsort(scores)[-100:]
genes = genes[:, top]
x_train, x_test = train_test_split(genes)
""",
    "correlations, column by column": """
def load(x, y):
    corr = np.array([np.corrcoef(x[:, j], y)[0, 1] for j in range(x.shape[1])])
    keep = np.abs(corr) > 0.2
    n = int(0.8 * len(x))
    x_train, x_val = x[:n], x[n:]
    return x_train[:, keep], x_val[:, keep]
""",
}

LATE = {
    "fitted to the training part": """
X_train, X_test, y_train, y_test = train_test_split(X, y)
X_train = SelectKBest().fit_transform(X_train, y_train)
""",
    "fitted to some rows": """
best = SelectKBest().fit(X[:800], y[:800])
train, val = random_split(best.transform(X), [800, 200])
""",
    "other rows under the same name": """
best = SelectKBest().fit(X, y)
X = load_other()
X_train, X_test = train_test_split(X)
""",
    "a picture before the split": """
flat = LinearDiscriminantAnalysis().fit_transform(X, y)
plt.scatter(flat[:, 0], flat[:, 1])
X_train, X_test = train_test_split(X)
""",
    "a look at the scores": """
best = SelectKBest().fit(X, y)
print(best.scores_)
X_train, X_test = train_test_split(X)
""",
    "correlations to look at": """
corr = np.array([pearsonr(X[:, j], y)[0] for j in range(9)])
top = np.argsort(corr)[-3:]
print(top, corr[top])
X_train, X_test = train_test_split(X)
plt.bar(range(9), corr)
""",
    "correlations among columns": """
twins = np.corrcoef(X, Z)
X = X[:, twins[0] < 0.9]
X_train, X_test = train_test_split(X)
""",
    "scores of the training part": """
x_train, x_val = X[:800], X[800:]
top = np.argsort(f_classif(x_train, y_train)[0])[-20:]
x_train, x_val = x_train[:, top], x_val[:, top]
""",
    "columns sliced": """
X = SelectKBest().fit_transform(X[:800], y[:800])
train_columns = X[:, :3]
""",
    "another function": """
def explore(X, y):
    SelectKBest().fit(X, y)

train, val = train_test_split(X)
""",
}


def fits(text: str, folder: Path) -> tuple[EarlyFit, ...]:
    file = folder / "train.py"
    file.write_text(text)
    return early_fits(source_of(file))


@pytest.mark.parametrize("text", EARLY.values(), ids=EARLY)
def test_a_selection_that_has_seen_the_targets_of_all_rows(text: str, tmp_path: Path) -> None:
    assert any(fit.by_target and fit.line < fit.split for fit in fits(text, tmp_path))


@pytest.mark.parametrize("text", LATE.values(), ids=LATE)
def test_a_selection_that_has_not(text: str, tmp_path: Path) -> None:
    assert not fits(text, tmp_path)


def test_a_scaler_sees_no_targets(tmp_path: Path) -> None:
    (fit,) = fits("X = StandardScaler().fit_transform(X)\na, b = train_test_split(X)", tmp_path)
    assert fit == EarlyFit("StandardScaler", by_target=False, line=1, split=2)
