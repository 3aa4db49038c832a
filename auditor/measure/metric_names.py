"""What the name of a metric says: whether a higher value is better, and whether 1 is the best."""

from __future__ import annotations

import re

_WORDS = re.compile(r"[A-Z]?[a-z]+\d*|[A-Z]+(?![a-z])\d*")

_LOW = frozenset(
    {
        "cer", "eer", "err", "error", "errors", "fid", "loss", "losses", "mae", "mape", "mse",
        "nll", "perplexity", "ppl", "rmse", "rmsle", "wer",
    }
)  # fmt: skip
"""Words of metrics that are better when they are lower."""

_SHARES = frozenset(
    {
        "acc", "accuracy", "auc", "auprc", "auroc", "dice", "f1", "iou", "jaccard", "miou",
        "precision", "recall", "r2",
    }
)  # fmt: skip
"""Words of metrics that are better when they are higher, and 1 or 100% at best."""

_HIGH = _SHARES | {"bleu", "kappa", "map", "mcc", "mrr", "ndcg", "psnr", "rouge", "ssim"}
"""Words of metrics that are better when they are higher."""

_ERRORS = frozenset({"mae", "mape", "mse", "rmse", "rmsle", "smape"})
"""Words of means of differences between predictions and targets."""

_TURNED = frozenset({"diff", "distance", "drop", "gap", "inverse", "minus", "neg", "negative"})
"""Words that turn a metric round, or make something else of it."""


def better_when_higher(text: str) -> bool | None:
    """Return whether what ``text`` names is better when it is higher; None where it is not said.

    ``text`` may be a name (``val_acc``), a label (``val/loss``) or an expression. Words of both
    kinds, words that turn them, a minus and a call of Python's ``map`` say nothing.
    """
    words = _words(text)
    low, high = bool(words & _LOW), bool(words & _HIGH)
    turned = bool(words & _TURNED) or "-" in text or "map(" in text
    return None if low is high or turned else high


def best_is_one(text: str) -> bool:
    """Whether what ``text`` names is 1, or 100%, at best: an accuracy, and not a loss of it."""
    words = _words(text)
    return bool(words & _SHARES) and not words & (_LOW | _TURNED)


def best_is_zero(text: str) -> bool:
    """Whether what ``text`` names is an error of quantities, 0 at best: a mean of differences."""
    words = _words(text)
    return bool(words & _ERRORS) and not words & (_HIGH | _TURNED)


def _words(text: str) -> set[str]:
    """Return the words of ``text``, also whole (``IoU``) and without a number (``acc1``)."""
    words = {word.lower() for word in _WORDS.findall(text)}
    words |= set(re.findall(r"[a-z0-9]+", text.lower()))
    return words | {word.rstrip("0123456789") for word in words}
