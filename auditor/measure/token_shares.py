"""Tokens that most training texts hold and no text of validation: the unknown word, say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from nnaudit import stats

_FEWEST = 50
"""Texts of each set from which their shares say something."""

_MANY, _FEW = 0.5, 0.05
"""Shares of the texts of training, and of validation, that hold such a token."""

_OFTEN = 0.05
"""Share of the tokens of training that it makes up at least."""


@dataclass(frozen=True)
class TokenShare:
    """A token of training's texts.

    Attributes:
        token: its id.
        train, val: the share of the texts of each set that hold it.
        often: its share of training's tokens.
    """

    token: int
    train: float
    val: float
    often: float


def training_only(train: Sequence[Tensor], val: Sequence[Tensor]) -> TokenShare | None:
    """Return the commonest token that most texts of ``train`` have and hardly one of ``val``.

    Texts are token ids, (T,) each, of any length; what repeats at either end is padding, and does
    not count. Dealt at random, texts with a token would be as frequent in both sets (p < 1e-4 by
    the binomial distribution); the other way round is no wonder, for words that training lacks are
    unknown.
    """
    if min(len(train), len(val)) < _FEWEST:
        return None
    tokens = [Counter(_content(text)) for text in train]
    total = sum(tokens, Counter())
    rows = Counter(token for text in tokens for token in text)
    theirs = Counter(token for text in val for token in set(_content(text)))
    for token, often in total.most_common():
        share, other = rows[token] / len(train), theirs[token] / len(val)
        if share < _MANY or other > _FEW or often < _OFTEN * total.total():
            continue
        missing = len(val) - theirs[token]
        if stats.binomial_sf(missing, len(val), 1 - share) < stats.ALPHA:
            return TokenShare(token, share, other, often / total.total())
    return None


def _content(text: Tensor) -> list[int]:
    """Return the tokens of ``text`` without what repeats at its ends."""
    tokens: list[int] = text.reshape(-1).tolist()
    for _ in range(2):  # from the front, then from the back
        repeats = next((i for i, token in enumerate(tokens) if token != tokens[0]), len(tokens))
        tokens = tokens[repeats:][::-1]
    return tokens
