from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference
from scipy.special import betainc
from sklearn.datasets import load_digits, load_wine

from nnaudit import stats


@pytest.mark.parametrize("z", [-8.0, -1.0, 0.0, 0.5, 4.0, 20.0])
def test_normal_tail(z: float) -> None:
    assert stats.normal_sf(z) == pytest.approx(reference.norm.sf(z), rel=1e-10)


@pytest.mark.parametrize(("x", "df"), [(0.0, 3), (1e-3, 1), (5.0, 2), (40.0, 9), (900.0, 500)])
def test_chi_squared_tail(x: float, df: int) -> None:
    assert stats.chi2_sf(x, df) == pytest.approx(reference.chi2.sf(x, df), rel=1e-8)


@pytest.mark.parametrize(("count", "mean"), [(0, 1.0), (1, 1.0), (9, 1.0), (3, 20.0), (4, 0.0)])
def test_poisson_tail(count: int, mean: float) -> None:
    assert stats.poisson_sf(count, mean) == pytest.approx(reference.poisson.sf(count - 1, mean))


def test_nine_fixed_points_are_one_in_a_million() -> None:
    assert 1e-7 < stats.poisson_sf(9, 1.0) < 2e-6


@settings(max_examples=60, deadline=None)
@given(st.floats(0.05, 3000), st.floats(0.05, 3000), st.floats(0, 1))
def test_incomplete_beta(a: float, b: float, x: float) -> None:
    # lgamma of large numbers costs digits: relative to 1, not to a tail of 1e-200.
    assert stats.betainc(a, b, x) == pytest.approx(betainc(a, b, x), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize(
    ("count", "trials", "p"), [(0, 5, 0.3), (5, 5, 0.3), (6, 5, 0.3), (30, 200, 0.1)]
)
def test_binomial_tail(count: int, trials: int, p: float) -> None:
    assert stats.binomial_sf(count, trials, p) == pytest.approx(
        reference.binom.sf(count - 1, trials, p)
    )


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 40), (3, 40), (40, 40), (500, 100_000)])
@pytest.mark.parametrize("confidence", [0.95, 0.9999])
def test_clopper_pearson(k: int, n: int, confidence: float) -> None:
    low, high = stats.clopper_pearson(k, n, confidence)
    expected = reference.binomtest(k, n).proportion_ci(confidence, "exact")
    assert low == pytest.approx(expected.low, rel=1e-7, abs=1e-12)
    assert high == pytest.approx(expected.high, rel=1e-7)


def test_clopper_pearson_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="5 successes in 4 trials"):
        stats.clopper_pearson(5, 4)


@pytest.mark.parametrize(
    "labels", [[0, 1], [0, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1, 2], [0, 0, 1, 1, 2, 2], [3] * 5]
)
def test_moments_of_equal_neighbours_are_those_of_all_orders(labels: list[int]) -> None:
    counts = [
        sum(a == b for a, b in itertools.pairwise(order))
        for order in itertools.permutations(labels)
    ]
    found = stats.equal_neighbours(labels)
    assert found.mean == pytest.approx(np.mean(counts))
    assert found.sd == pytest.approx(np.std(counts), abs=1e-9)
    assert found.observed == sum(a == b for a, b in itertools.pairwise(labels))


def test_equal_neighbours_of_too_few() -> None:
    assert stats.equal_neighbours([]).z == stats.equal_neighbours([1]).z == 0.0


def test_neighbours_rarely_look_sorted_by_chance_and_always_when_they_are() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(600) % 10
    alarms = [stats.equal_neighbours(rng.permutation(labels)).p < 0.01 for _ in range(2000)]
    assert sum(alarms) < 2000 * 0.02
    assert stats.equal_neighbours(np.sort(labels)).z > 50
    halves = np.repeat(rng.permutation(labels)[:300], 2)
    assert stats.equal_neighbours(halves).z > 4


def test_ranks_share_ties() -> None:
    values = [3.0, 1.0, 3.0, -2.0, 7.0, 3.0]
    assert stats.rank(values) == pytest.approx(reference.rankdata(values) - 1)


def test_spearman() -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(0, 9, 60)
    y = x + rng.normal(size=60)
    assert stats.spearman(x, y) == pytest.approx(reference.spearmanr(x, y).statistic)
    assert stats.spearman(x, np.ones(60)) == 0.0


def test_lag_one_is_standard_normal_in_a_random_order() -> None:
    rng = np.random.default_rng(2)
    z = [stats.lag_one(rng.exponential(size=300)).z for _ in range(2000)]
    assert np.mean(z) == pytest.approx(0, abs=0.08)
    assert np.std(z) == pytest.approx(1, abs=0.06)
    assert np.mean(np.array(z) > 2.326) < 0.02


def test_lag_one_sees_order() -> None:
    rng = np.random.default_rng(3)
    walk = np.cumsum(rng.normal(size=300))
    assert stats.lag_one(walk).z > 10
    assert stats.lag_one(np.ones(50)).z == 0.0


def test_fixed_points_of_random_orders_are_poisson() -> None:
    rng = np.random.default_rng(4)
    items = list(range(200))
    found = [stats.fixed_points(items, rng.permutation(items).tolist()) for _ in range(1000)]
    assert all(each.expected == pytest.approx(1.0) for each in found)
    assert np.mean([each.count for each in found]) == pytest.approx(1.0, abs=0.15)
    assert min(each.p for each in found) > 1e-5


def test_fixed_points_allow_for_repeated_items() -> None:
    found = stats.fixed_points("aabb", "abab")
    assert (found.count, found.length, found.expected) == (2, 4, 2.0)
    assert stats.fixed_points([], []).p == 1.0


@pytest.mark.parametrize("seed", range(4))
def test_mann_kendall(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 12, 50) + 0.05 * seed * np.arange(50)
    trend = stats.mann_kendall(y)
    s = sum(np.sign(b - a) for a, b in itertools.combinations(y, 2))
    assert trend.tau == pytest.approx(s / math.comb(50, 2))
    expected = reference.kendalltau(np.arange(50), y, method="asymptotic").pvalue
    assert 2 * min(trend.p_rising, trend.p_falling) == pytest.approx(expected, rel=0.1)


def test_mann_kendall_of_a_constant_or_nothing_has_no_trend() -> None:
    for values in ([], [1.0], [2.0] * 9):
        assert stats.mann_kendall(values).p_rising == 0.5


def test_total_variation() -> None:
    assert stats.total_variation([1, 1], [5, 5]) == 0.0
    assert stats.total_variation([3, 0], [0, 7]) == 1.0
    assert stats.total_variation([1, 3], [1, 1]) == pytest.approx(0.25)
    assert stats.total_variation([0, 0], [1, 1]) == 0.0


def test_homogeneity() -> None:
    table = np.array([[10, 20, 30, 0], [14, 15, 40, 0], [0, 0, 0, 0]])
    p, df = stats.homogeneity(table)
    expected = reference.chi2_contingency(table[:2, :3])
    assert p == pytest.approx(expected.pvalue)
    assert df == expected.dof
    assert stats.homogeneity([[3, 0], [4, 0]]) == (1.0, 0)


def test_moments_of_an_association_are_those_of_all_matchings() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(6, 6)), rng.integers(0, 2, (6, 6))
    found = stats.association(a, b)
    x, y = (a + a.T) / 2, (b + b.T) / 2
    np.fill_diagonal(x, 0), np.fill_diagonal(y, 0)
    orders = [list(order) for order in itertools.permutations(range(6))]
    sums = [float((x * y[np.ix_(order, order)]).sum()) for order in orders]
    assert found.observed == pytest.approx(sums[0])
    assert found.mean == pytest.approx(np.mean(sums))
    assert found.sd == pytest.approx(np.std(sums))


def test_an_association_of_too_few_says_nothing() -> None:
    assert stats.association(np.ones((3, 3)), np.ones((3, 3))).z == 0.0


@pytest.mark.parametrize("draw", ["normal", "uniform", "exponential", "binary"])
def test_independent_columns_are_not_correlated_beyond_chance(draw: str) -> None:
    rng = np.random.default_rng(0)
    tables = {
        "normal": lambda: rng.normal(size=(200, 12)),
        "uniform": lambda: rng.random((200, 12)),
        "exponential": lambda: rng.exponential(size=(200, 12)),
        "binary": lambda: rng.integers(0, 2, (200, 12)),
    }
    z = np.array([stats.correlated_columns(tables[draw]()).z for _ in range(400)])
    assert abs(z.mean()) < 0.2
    assert 0.85 < z.std() < 1.2
    assert (z > 4).mean() < 0.01


def test_measurements_are_correlated() -> None:
    for load in (load_digits, load_wine):
        assert stats.correlated_columns(load().data).z > 50
    rng = np.random.default_rng(0)
    weak = rng.normal(size=(768, 10)) + 0.5 * rng.normal(size=(768, 1))
    assert stats.correlated_columns(weak).z > 4
    assert stats.correlated_columns(np.ones((100, 3))).z == 0.0
    assert stats.correlated_columns(rng.normal(size=(100, 1))).sd == 0.0


def test_permutation_test_is_exact_and_has_power() -> None:
    rng = np.random.default_rng(5)
    null = [
        stats.permutation_test(rng.normal(size=9), rng.normal(size=9), rng, permutations=199)
        for _ in range(200)
    ]
    assert np.mean(np.array(null) <= 0.1) == pytest.approx(0.1, abs=0.05)
    assert stats.permutation_test(rng.normal(size=30) + 2, rng.normal(size=30), rng) <= 2e-4
    assert stats.permutation_test([1.0, 1.0], [1.0, 1.0], rng, permutations=50) == 1.0
