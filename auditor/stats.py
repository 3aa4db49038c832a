"""The statistical tests that checks use. Knows nothing of training; numpy and torch only.

Every ``z`` is in standard deviations from what the null hypothesis expects, every ``p`` the
probability, under it, of a value at least as extreme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

ALPHA = 1e-4
"""The level of one test: at 1 % a battery of sixty alarms on 45 % of healthy programs."""


@dataclass(frozen=True)
class Deviation:
    """A statistic against its distribution under the null hypothesis."""

    observed: float
    mean: float
    sd: float

    @property
    def z(self) -> float:
        """Standard deviations above expectation; 0 where the statistic cannot vary."""
        return (self.observed - self.mean) / self.sd if self.sd > 0 else 0.0

    @property
    def p(self) -> float:
        """Upper tail of the normal approximation."""
        return normal_sf(self.z)


# --- tails --------------------------------------------------------------------------------------


def normal_sf(z: float) -> float:
    """Return P(Z >= z) for a standard normal Z."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def chi2_sf(x: float, df: float) -> float:
    """Return P(X >= x) for a chi-squared X with ``df`` degrees of freedom."""
    if x <= 0:
        return 1.0
    return float(torch.special.gammaincc(_double(df / 2), _double(x / 2)))


def poisson_sf(count: int, mean: float) -> float:
    """Return P(X >= count) for a Poisson X."""
    if count <= 0:
        return 1.0
    if mean <= 0:
        return 0.0
    return float(torch.special.gammainc(_double(count), _double(mean)))


def binomial_sf(count: int, trials: int, probability: float) -> float:
    """Return P(X >= count) for a binomial X."""
    if count <= 0:
        return 1.0
    if count > trials:
        return 0.0
    return betainc(count, trials - count + 1, probability)


def _double(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


def betainc(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b), for a, b > 0 and 0 <= x <= 1.

    By its continued fraction (DLMF 8.17.22), on the side of the mean where that converges fast.
    """
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    if x > (a + 1) / (a + b + 2):
        return 1.0 - betainc(b, a, 1 - x)
    log_front = a * math.log(x) + b * math.log1p(-x) - math.log(a) - _log_beta(a, b)
    return math.exp(log_front) * _beta_fraction(a, b, x)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Evaluate the continued fraction by Lentz's method; the number of terms grows as sqrt(a+b)."""
    tiny = 1e-300
    c, d = 1.0, 0.0
    fraction = 1.0
    for i in range(int(200 + 20 * math.sqrt(a + b))):
        m, odd = divmod(i, 2)
        if i == 0:
            term = 1.0
        elif odd:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1.0 / (_away_from_zero(1.0 + term * d, tiny))
        c = _away_from_zero(1.0 + term / c, tiny)
        step = c * d
        fraction *= step
        if i > 0 and abs(step - 1.0) < 1e-15:
            break
    return fraction - 1.0


def _away_from_zero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact confidence interval of a proportion (Clopper and Pearson, 1934).

    Raises:
        ValueError: ``successes`` is not within 0 and ``trials``.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes in {trials} trials")
    tail = (1 - confidence) / 2
    low = _root(lambda p: binomial_sf(successes, trials, p) - tail) if successes else 0.0
    if successes == trials:
        return low, 1.0
    high = _root(lambda p: tail - (1 - binomial_sf(successes + 1, trials, p)))
    return low, high


def _root(increasing: Callable[[float], float]) -> float:
    """Bisect an increasing function on [0, 1] down to the resolution of a double."""
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if increasing(middle) < 0 else (low, middle)
    return (low + high) / 2


# --- order --------------------------------------------------------------------------------------


def equal_neighbours(labels: ArrayLike) -> Deviation:
    """Count neighbours with equal labels, against all orders of the same labels.

    The null hypothesis is that every order of ``labels`` (shape ``(n,)``) is equally likely. Mean
    and variance are exact: the variance collects pairs of neighbours that share a position, and
    pairs that do not.
    """
    values = np.asarray(labels)
    n = len(values)
    if n < 2:
        return Deviation(0.0, 0.0, 0.0)
    _, sizes = np.unique(values, return_counts=True)
    mean, variance = _neighbour_moments(sizes.astype(np.float64))
    return Deviation(float((values[1:] == values[:-1]).sum()), mean, math.sqrt(max(variance, 0.0)))


def _neighbour_moments(c: NDArray[np.float64]) -> tuple[float, float]:
    n = float(c.sum())
    pairs, triples = c * (c - 1), c * (c - 1) * (c - 2)
    mean = pairs.sum() / n
    if n < 3:
        return float(mean), 0.0
    sharing = 2 * triples.sum() / (n * (n - 1))
    apart = 0.0
    if n > 3:
        quadruples = (triples * (c - 3)).sum() + pairs.sum() ** 2 - (pairs**2).sum()
        apart = quadruples / (n * (n - 1))
    return float(mean), float(mean + sharing + apart - mean**2)


def lag_one(values: ArrayLike) -> Deviation:
    """Correlate each rank with the next, against all orders of the same values.

    ``observed`` is the lag-1 serial correlation of the ranks (shape ``(n,)``, ties share a rank).
    Under a random order its mean is -1/n and its deviation about 1/sqrt(n) (Wald and Wolfowitz,
    1943).
    """
    ranks = rank(values)
    n = len(ranks)
    centred = ranks - ranks.mean()
    power = float((centred**2).sum())
    if n < 3 or power == 0:
        return Deviation(0.0, 0.0, 0.0)
    observed = float((centred[1:] * centred[:-1]).sum()) / power
    return Deviation(observed, -1 / n, 1 / math.sqrt(n))


def rank(values: ArrayLike) -> NDArray[np.float64]:
    """Return the rank of each value, from 0; equal values get their mean rank."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    mean_rank: NDArray[np.float64] = ends - (counts + 1) / 2
    return mean_rank[inverse.reshape(-1)]


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Return the rank correlation of two sequences; 0 where one of them is constant."""
    a, b = rank(x), rank(y)
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / scale if scale > 0 else 0.0


@dataclass(frozen=True)
class FixedPoints:
    """How often two sequences hold the same item at the same position.

    ``expected`` is for a random order of the items in the second; without repeated items it is 1.
    """

    count: int
    length: int
    expected: float

    @property
    def p(self) -> float:
        """Upper tail of the Poisson distribution, which the count has in a random order."""
        return poisson_sf(self.count, self.expected)


def fixed_points(first: Sequence[object], second: Sequence[object]) -> FixedPoints:
    """Compare two sequences position by position, as far as the shorter one goes."""
    n = min(len(first), len(second))
    sizes: dict[object, list[int]] = {}
    for which, items in enumerate((first[:n], second[:n])):
        for item in items:
            sizes.setdefault(item, [0, 0])[which] += 1
    count = sum(a == b for a, b in zip(first[:n], second[:n], strict=True))
    expected = sum(a * b for a, b in sizes.values()) / n if n else 0.0
    return FixedPoints(count, n, expected)


@dataclass(frozen=True)
class Trend:
    """The Mann-Kendall test for a monotone trend: ``tau`` from -1 (falling) to 1 (rising)."""

    tau: float
    z: float

    @property
    def p_rising(self) -> float:
        """Upper tail: small when the sequence rises."""
        return normal_sf(self.z)

    @property
    def p_falling(self) -> float:
        """Lower tail: small when the sequence falls."""
        return normal_sf(-self.z)


def mann_kendall(values: ArrayLike) -> Trend:
    """Test ``values`` (shape ``(n,)``) for a trend: the pairs that rise against those that fall.

    The variance is corrected for ties (Kendall, 1975), ``z`` for continuity.
    """
    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    s = float(sum(np.sign(x[i + 1 :] - x[i]).sum() for i in range(n - 1)))
    _, ties = np.unique(x, return_counts=True)
    variance = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    if variance <= 0:
        return Trend(0.0, 0.0)
    return Trend(
        s / (n * (n - 1) / 2), (s - math.copysign(min(1.0, abs(s)), s)) / math.sqrt(variance)
    )


# --- groups -------------------------------------------------------------------------------------


def total_variation(a: ArrayLike, b: ArrayLike) -> float:
    """Return half the sum of absolute differences of two count vectors, each scaled to sum 1.

    0: the same composition; 1: nothing in common.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.sum() == 0 or y.sum() == 0:
        return 0.0
    return float(np.abs(x / x.sum() - y / y.sum()).sum() / 2)


def homogeneity(table: ArrayLike) -> tuple[float, int]:
    """Return p and the degrees of freedom of Pearson's chi-squared test of a table of counts.

    The null hypothesis is that all rows of ``table`` (shape ``(groups, classes)``) are drawn from
    one distribution. Empty rows and columns are left out.
    """
    counts = np.asarray(table, dtype=np.float64)
    counts = counts[counts.sum(1) > 0][:, counts.sum(0) > 0]
    if min(counts.shape, default=0) < 2:
        return 1.0, 0
    expected = np.outer(counts.sum(1), counts.sum(0)) / counts.sum()
    df = (counts.shape[0] - 1) * (counts.shape[1] - 1)
    return chi2_sf(float(((counts - expected) ** 2 / expected).sum()), df), df


def correlated_columns(table: ArrayLike) -> Deviation:
    """Return the mean squared correlation of all pairs of columns, against independent columns.

    ``table`` has shape ``(n, p)``; columns that do not vary are left out. Independent normal
    columns have E r^2 = 1 / (n - 1) and Var r^2 = 2 (n - 2) / ((n - 1)^2 (n + 1)), and their pairs
    are uncorrelated; others have the same mean, and nearly the same variance for many rows. Fewer
    than two columns, or four rows, show nothing.
    """
    values = np.asarray(table, dtype=np.float64)
    values = values[:, values.std(0) > 1e-12] if len(values) else values
    n, p = values.shape
    if p < 2 or n < 4:
        return Deviation(0.0, 0.0, 0.0)
    pairs = np.asarray(np.corrcoef(values, rowvar=False))[np.triu_indices(p, 1)]
    variance = 2 * (n - 2) / ((n - 1) ** 2 * (n + 1)) / len(pairs)
    return Deviation(float((pairs**2).mean()), 1 / (n - 1), math.sqrt(variance))


def association(a: ArrayLike, b: ArrayLike) -> Deviation:
    """Return the sum of products of two tables of pairs, against all matchings of their rows.

    ``a`` and ``b`` (shape ``(n, n)``) say of each pair of rows how near they are, in two respects;
    they are made symmetric, and their diagonals are left out. The null hypothesis is that every
    matching of the rows of one with those of the other is equally likely. Mean and variance are
    exact (Mantel, 1967), ties included; the distribution is near normal for many rows.
    """
    x, y = _pairs(a), _pairs(b)
    n = len(x)
    if n < 4:
        return Deviation(0.0, 0.0, 0.0)
    sums = x.sum(), y.sum()
    squares = (x**2).sum(), (y**2).sum()
    rows = (x.sum(1) ** 2).sum(), (y.sum(1) ** 2).sum()
    mean = sums[0] * sums[1] / (n * (n - 1))
    same = 2 * squares[0] * squares[1] / (n * (n - 1))
    one = 4 * (rows[0] - squares[0]) * (rows[1] - squares[1]) / (n * (n - 1) * (n - 2))
    none = math.prod(s**2 + 2 * q - 4 * r for s, q, r in zip(sums, squares, rows, strict=True))
    none /= n * (n - 1) * (n - 2) * (n - 3)
    variance = float(same + one + none - mean**2)
    return Deviation(float((x * y).sum()), float(mean), math.sqrt(max(variance, 0.0)))


def _pairs(table: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(table, dtype=np.float64)
    values = (values + values.T) / 2
    np.fill_diagonal(values, 0.0)
    return values


def permutation_null(
    statistic: Callable[[NDArray[np.intp]], float],
    n: int,
    rng: np.random.Generator,
    *,
    permutations: int = 1000,
) -> tuple[Deviation, float]:
    """Return ``statistic`` of the identity against permutations of ``range(n)``, and its p.

    ``p`` counts the identity among the permutations, so that it is never below
    1/(permutations + 1) and the test is exact (Phipson and Smyth, 2010).
    """
    observed = statistic(np.arange(n))
    drawn = np.array([statistic(rng.permutation(n)) for _ in range(permutations)])
    # Sums in another order differ in the last bits: a tie must count as one.
    slack = 1e-12 * max(abs(observed), 1.0)
    p = (1 + int((drawn >= observed - slack).sum())) / (1 + permutations)
    return Deviation(observed, float(drawn.mean()), float(drawn.std())), p


def permutation_test(
    a: ArrayLike, b: ArrayLike, rng: np.random.Generator, *, permutations: int = 10_000
) -> float:
    """Return the one-sided p that the mean of ``a`` exceeds that of ``b`` by chance."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    pooled = np.concatenate([x, y])

    def difference(order: NDArray[np.intp]) -> float:
        return float(pooled[order[: len(x)]].mean() - pooled[order[len(x) :]].mean())

    return permutation_null(difference, len(pooled), rng, permutations=permutations)[1]
