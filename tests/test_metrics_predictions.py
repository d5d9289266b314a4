"""Scores of predictions, against numbers worked out by hand and against slow loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from stmae import metrics

SCORES = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.4, 0.4, 0.2], [0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])
TARGETS = np.array([0, 2, 1, 2, 1])  # right: rows 0 and 3; second: rows 1, 2 (a tie: class 0 goes first) and 4


def test_accuracies_by_hand() -> None:
    assert metrics.hits(SCORES, TARGETS).tolist() == [True, False, False, True, False]
    assert metrics.hits(SCORES, TARGETS, 2).all()
    assert metrics.topk_accuracy(SCORES, TARGETS) == 0.4
    assert metrics.topk_accuracy(SCORES, TARGETS, 5) == 1.0  # of three classes
    np.testing.assert_allclose(metrics.class_accuracies(SCORES, TARGETS), [1, 0, 0.5])
    assert metrics.mean_class_accuracy(SCORES, TARGETS) == 0.5
    matrix = metrics.confusion_matrix(SCORES.argmax(1), TARGETS, 3)
    assert matrix.tolist() == [[1, 0, 0], [2, 0, 0], [0, 1, 1]]


def test_a_class_without_rows_counts_for_nothing_and_a_score_that_is_none_is_wrong() -> None:
    assert math.isnan(metrics.class_accuracies(SCORES[:1], TARGETS[:1])[2])
    assert metrics.mean_class_accuracy(SCORES[:1], TARGETS[:1]) == 1.0
    broken = np.full((2, 3), np.nan)
    assert metrics.topk_accuracy(broken, np.array([0, 2]), 3) == 0.0


def test_average_precision_by_hand() -> None:
    scores, truth = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([1, 0, 1, 0, 1])
    # recall steps of a third at precision 1/1, 2/3, 3/5
    assert metrics.average_precision(scores, truth) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert metrics.average_precision(scores[::-1], truth[::-1]) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    # The two rows of equal score come in together: precision 1/2 for the first half of the recall, 2/4 for the rest.
    assert metrics.average_precision(np.array([3, 3, 2, 1]), np.array([1, 0, 0, 1])) == pytest.approx(0.5)
    assert metrics.average_precision(np.array([3, 3, 2, 1]), np.array([0, 1, 0, 1])) == pytest.approx(0.5)
    assert metrics.average_precision(np.zeros(5), truth) == pytest.approx(3 / 5)  # knows nothing: the share
    assert math.isnan(metrics.average_precision(scores, np.zeros(5)))


def test_map_leaves_out_classes_that_are_never_true() -> None:
    scores = np.array([[0.9, 0.1, 0.3], [0.2, 0.8, 0.3], [0.8, 0.9, 0.3]])
    targets = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0]])
    assert metrics.mean_average_precision(scores, targets) == pytest.approx((1 + 0.5) / 2)
    assert math.isnan(metrics.mean_average_precision(scores, np.zeros((3, 3))))


def test_calibration_by_hand() -> None:
    confidence, right = np.array([0.95, 0.85, 0.55, 0.6, 0.35]), np.array([1, 1, 0, 1, 0], bool)
    found = metrics.calibration(confidence, right, bins=5)  # (0.8, 1], (0.4, 0.6] and (0.2, 0.4] hold 2, 2 and 1
    assert found.counts.tolist() == [0, 1, 2, 0, 2]
    np.testing.assert_allclose(found.confidence, [np.nan, 0.35, 0.575, np.nan, 0.9])
    np.testing.assert_allclose(found.accuracy, [np.nan, 0, 0.5, np.nan, 1])
    assert found.error == pytest.approx((1 * 0.35 + 2 * 0.075 + 2 * 0.1) / 5)
    assert metrics.calibration(np.array([0.0, 1.0]), np.array([False, True])).error == 0


def test_regression_errors_by_hand() -> None:
    truth = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    found = metrics.regression_errors(np.array([[1.0, 4.0], [2.0, 5.0], [5.0, 6.0]]), truth)
    np.testing.assert_allclose(found.mae, [2 / 3, 2 / 3])
    np.testing.assert_allclose(found.rmse, [math.sqrt(4 / 3), math.sqrt(2 / 3)])
    np.testing.assert_allclose(found.r2, [1 - 4 / 2, np.nan])


def test_softmax_of_large_logits() -> None:
    np.testing.assert_allclose(metrics.softmax(np.array([[1000.0, 1000.0, -1000.0]])), [[0.5, 0.5, 0]])


def test_wilson_interval_is_the_published_one() -> None:
    # Newcombe (1998), table I: 81 of 263 and 15 of 148, score method without continuity correction.
    assert metrics.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert metrics.wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert metrics.wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    low, high = metrics.wilson(20, 20)
    assert (low, high) == (pytest.approx(0.8389, abs=5e-5), 1.0)


def test_bootstrap_of_a_mean_is_near_its_normal_interval() -> None:
    values = np.random.default_rng(1).normal(size=400)
    low, high = metrics.bootstrap(lambda rows: float(values[rows].mean()), len(values))
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    assert metrics.bootstrap(lambda rows: float(values[rows].mean()), len(values)) == (low, high)


def test_rows_of_one_group_are_drawn_together() -> None:
    groups = np.repeat(np.arange(20), 10)
    values = np.random.default_rng(2).normal(size=20)[groups]  # ten copies each
    apart = metrics.bootstrap(lambda rows: float(values[rows].mean()), 200)
    together = metrics.bootstrap(lambda rows: float(values[rows].mean()), 200, groups=groups)
    assert together[1] - together[0] > 2.5 * (apart[1] - apart[0])  # sqrt(10) times
    seen = []
    metrics.bootstrap(lambda rows: float(seen.append(rows) or 0), 200, groups=groups, draws=3)  # type: ignore[func-returns-value]
    assert all((np.bincount(rows, minlength=200).reshape(20, 10).std(axis=1) == 0).all() for rows in seen)


def slow_knn(known: np.ndarray, targets: np.ndarray, query: np.ndarray, k: int, temperature: float) -> np.ndarray:
    similar = [row @ query / np.linalg.norm(row) / np.linalg.norm(query) for row in known]
    near = sorted(range(len(known)), key=lambda i: -similar[i])[:k]
    weights = [math.exp(similar[i] / temperature) for i in near]
    return sum(w * targets[i] for w, i in zip(weights, near, strict=True)) / sum(weights)


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_knn_is_that_of_a_slow_loop_for_every_setting(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    labels = random.integers(0, 4, 50)
    features = random.normal(size=(50, 6)) + np.eye(4, 6)[labels]
    targets = np.eye(4)[labels] if kind == "classes" else random.normal(size=(50, 2))
    asked = random.normal(size=(9, 6))
    ks, temperatures = (1, 5, 20, 200), (0.05, 0.3)
    monkeypatch.setattr(metrics, "KNN_CELLS", 200)  # several rounds
    found = metrics.knn_predict(features, targets, asked, ks=ks, temperatures=temperatures)
    alone = metrics.knn_predict(features, targets, ks=ks, temperatures=temperatures)
    assert found.keys() == set(itertools.product(ks, temperatures))
    for (k, t), rows in found.items():
        np.testing.assert_allclose(rows, [slow_knn(features, targets, query, k, t) for query in asked], atol=1e-6)
        left_out = [slow_knn(np.delete(features, i, 0), np.delete(targets, i, 0), features[i], k, t) for i in range(50)]
        np.testing.assert_allclose(alone[k, t], left_out, atol=1e-6)
    if kind == "classes":
        np.testing.assert_allclose(found[20, 0.05].sum(1), 1, atol=1e-6)
