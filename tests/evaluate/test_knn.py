"""kNN against numpy written from the formula and against scikit-learn; laws: blocks, scale, ties, small banks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from fastssl.errors import UserError
from fastssl.evaluate.knn import knn_accuracy, knn_predict

torch.set_num_threads(2)


def clusters(n: int, dim: int, classes: int, seed: int, noise: float = 1.5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (n,), generator=generator)
    return centres[labels] + noise * torch.randn(n, dim, generator=generator), labels


def brute_force(train_x, train_y, test_x, k: int, temperature: float) -> np.ndarray:
    """Float64, a full sort, the weights as the paper writes them."""
    a, b = train_x.double().numpy(), test_x.double().numpy()
    a = a / np.linalg.norm(a, axis=1, keepdims=True)
    b = b / np.linalg.norm(b, axis=1, keepdims=True)
    similarity = b @ a.T
    predictions = []
    for row in similarity:
        nearest = np.argsort(-row, kind="stable")[:k]
        scores = np.zeros(int(train_y.max()) + 1)
        for i in nearest:
            scores[train_y[i]] += np.exp(row[i] / temperature)
        predictions.append(scores.argmax())
    return np.array(predictions)


@pytest.mark.parametrize("k", [1, 7, 20, 200])
@pytest.mark.parametrize("temperature", [0.07, 0.1, 1.0])
def test_equals_the_formula(k, temperature):
    train_x, train_y = clusters(503, 37, 11, seed=0, noise=3.0)
    test_x, _ = clusters(129, 37, 11, seed=1, noise=3.0)
    expected = brute_force(train_x, train_y, test_x, k, temperature)
    # float64, so that no rounding can exchange the k-th and the next neighbour
    got = knn_predict(train_x.double(), train_y, test_x.double(), k=k, temperature=temperature)
    assert got.dtype == torch.int64
    np.testing.assert_array_equal(got.numpy(), expected)
    assert len(set(expected)) > 5  # the problem is not trivial


def test_equals_scikit_learn():
    train_x, train_y = clusters(700, 24, 6, seed=2, noise=2.5)
    test_x, test_y = clusters(211, 24, 6, seed=3, noise=2.5)
    model = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.1))
    model.fit(train_x.double().numpy(), train_y.numpy())
    expected = model.predict(test_x.double().numpy())
    got = knn_predict(train_x.double(), train_y, test_x.double())
    np.testing.assert_array_equal(got.numpy(), expected)
    accuracy = knn_accuracy(train_x, train_y, test_x, test_y)
    # float32 may move one prediction in 211 at a decision boundary
    assert abs(accuracy - (expected == test_y.numpy()).mean()) <= 1 / 211


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 13), (64, 300), (1000, 5)])
def test_blocks_do_not_change_the_result(rows, columns):
    train_x, train_y = clusters(301, 16, 5, seed=4)
    test_x, _ = clusters(67, 16, 5, seed=5)
    whole = knn_predict(train_x.double(), train_y, test_x.double())
    blocked = knn_predict(train_x.double(), train_y, test_x.double(), block_rows=rows, block_columns=columns)
    assert torch.equal(whole, blocked)


def test_no_block_is_larger_than_stated(monkeypatch):
    train_x, train_y = clusters(301, 16, 5, seed=4)
    seen = []
    topk = torch.Tensor.topk

    def spy(self, *args, **kwargs):
        seen.append(self.shape)
        return topk(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "topk", spy)
    knn_predict(train_x, train_y, train_x, k=3, block_rows=50, block_columns=40)
    assert max(shape[0] for shape in seen) == 50
    assert max(shape[1] for shape in seen) == 40


def test_only_directions_matter():
    train_x, train_y = clusters(200, 8, 4, seed=6)
    test_x, _ = clusters(50, 8, 4, seed=7)
    scale = torch.logspace(-3, 3, 200)[:, None]
    expected = knn_predict(train_x, train_y, test_x)
    assert torch.equal(knn_predict(train_x * scale, train_y, test_x * 1e-4), expected)


def test_equal_scores_go_to_the_lowest_class():
    x = torch.eye(4)
    y = torch.tensor([9, 3, 7, 5])
    # orthogonal to every training feature: four equal votes
    assert knn_predict(x, y, torch.zeros(1, 4), k=4).item() == 3
    assert knn_predict(x, y, torch.ones(1, 4), k=4).item() == 3


def test_a_nearer_neighbour_outvotes_farther_ones_when_temperature_is_small():
    train_x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, 0.6]])
    train_y = torch.tensor([0, 1, 1])
    query = torch.tensor([[1.0, 0.0]])
    assert knn_predict(train_x, train_y, query, k=3, temperature=0.1).item() == 0  # e^10 > 2 e^8
    assert knn_predict(train_x, train_y, query, k=3, temperature=1.0).item() == 1  # e^1 < 2 e^0.8


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 1e6])
def test_extreme_temperatures_stay_finite(temperature):
    train_x, train_y = clusters(100, 8, 4, seed=8)
    test_x, _ = clusters(30, 8, 4, seed=9)
    got = knn_predict(train_x.double(), train_y, test_x.double(), temperature=temperature)
    if temperature < 1:  # the nearest neighbour alone decides
        assert torch.equal(got, knn_predict(train_x.double(), train_y, test_x.double(), k=1))
    else:  # all twenty count alike
        expected = brute_force(train_x, train_y, test_x, 20, temperature)
        np.testing.assert_array_equal(got.numpy(), expected)


def test_k_larger_than_the_bank_takes_all():
    train_x, train_y = clusters(9, 5, 3, seed=10)
    test_x, _ = clusters(20, 5, 3, seed=11)
    expected = knn_predict(train_x, train_y, test_x, k=9)
    assert torch.equal(knn_predict(train_x, train_y, test_x, k=1000, block_columns=4), expected)


def test_one_sample_and_one_class():
    x = torch.tensor([[1.0, 2.0]])
    assert knn_predict(x, torch.tensor([4]), torch.randn(3, 2)).tolist() == [4, 4, 4]
    assert knn_accuracy(x, torch.tensor([4]), torch.randn(4, 2), torch.tensor([4, 0, 4, 4])) == 0.75
    assert knn_predict(torch.randn(30, 2), torch.zeros(30, dtype=torch.int64), torch.randn(1, 2)).tolist() == [0]


def test_labels_need_not_be_dense():
    train_x, train_y = clusters(200, 8, 4, seed=12)
    test_x, _ = clusters(50, 8, 4, seed=13)
    sparse = torch.tensor([3, 1_000_000_007, 5_000_000_000, 12])
    dense = torch.tensor([0, 2, 3, 1])  # the same order
    a, b = knn_predict(train_x, sparse[train_y], test_x), knn_predict(train_x, dense[train_y], test_x)
    assert torch.equal(a, sparse.sort().values[b])


def test_half_precision_features_are_compared_in_float32():
    train_x, train_y = clusters(300, 16, 5, seed=14)
    test_x, _ = clusters(60, 16, 5, seed=15)
    half = knn_predict(train_x.bfloat16(), train_y, test_x.bfloat16())
    assert torch.equal(half, knn_predict(train_x.bfloat16().float(), train_y, test_x.bfloat16().float()))


def test_inputs_are_left_alone():
    train_x, train_y = clusters(30, 4, 3, seed=16)
    before = train_x.clone()
    knn_predict(train_x, train_y, train_x)
    assert torch.equal(train_x, before)


X, Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(6, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X, Y, X[:, :2]), {}, "equal width"),
        ((X, Y[:5], X), {}, "train_y must hold one label"),
        ((X[:0], Y[:0], X), {}, "train_y must hold one label"),
        ((X, Y, X[:0]), {}, "test_x is empty"),
        ((X, Y - 1, X), {}, "negative labels"),
        ((X, Y, X), {"k": 0}, "k must be at least 1, got 0"),
        ((X, Y, X), {"temperature": 0.0}, "temperature must be > 0, got 0.0"),
        ((X / 0, Y, X), {}, "train_x has features that are not finite"),
        ((X, Y, X * float("nan")), {}, "test_x has features that are not finite"),
    ],
)
def test_bad_input_is_named(arguments, options, message):
    with pytest.raises(UserError, match=message):
        knn_predict(*arguments, **options)


def test_accuracy_needs_a_label_for_each_test_row():
    with pytest.raises(UserError, match="test_y must hold one label"):
        knn_accuracy(X, Y, X, Y[:4])
