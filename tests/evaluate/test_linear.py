"""The linear probe against scikit-learn, and the laws of how λ is chosen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from fastssl.errors import UserError
from fastssl.evaluate import linear
from fastssl.evaluate.linear import fit_logistic, linear_probe


@pytest.fixture(autouse=True)
def one_thread():
    """Problems this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


def features(n: int, dim: int, classes: int, seed: int, spread: float = 0.6) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes as Gaussians in a space of very unequal, correlated dimensions with an offset."""
    fixed = torch.Generator().manual_seed(100)
    mix = torch.randn(dim, dim, generator=fixed) * torch.logspace(0, -2, dim)
    centres = spread * torch.randn(classes, dim, generator=fixed)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    return (centres[labels] + torch.randn(n, dim, generator=generator)) @ mix + 3, labels


def sklearn_logistic(x, y, lam: float, solver: str = "newton-cholesky", tol: float = 1e-12) -> LogisticRegression:
    model = LogisticRegression(C=1 / (lam * len(x)), solver=solver, tol=tol, max_iter=1000)
    return model.fit(x.double().numpy(), y.numpy())


def objective(weights: torch.Tensor, x: torch.Tensor, y: torch.Tensor, lam: float) -> float:
    """Mean cross entropy and λ/2 · ‖W‖², in float64."""
    weights, x = weights.double(), x.double()
    logits = x @ weights[:-1] + weights[-1]
    return float(torch.nn.functional.cross_entropy(logits, y) + 0.5 * lam * weights[:-1].square().sum())


@pytest.mark.parametrize("lam", [1.0, 1e-2, 1e-4])
def test_weights_equal_scikit_learn(lam):
    x, y = features(300, 9, 4, seed=0)
    x = (x.double() - x.double().mean(0)) / x.double().std(0)
    model = sklearn_logistic(x, y, lam)
    weights = fit_logistic(x, y, torch.zeros(10, 4, dtype=torch.float64), lam, tolerance=1e-14)
    # the bias has no penalty: only its differences between classes are determined
    bias = weights[-1] - weights[-1].mean()
    theirs = torch.from_numpy(np.vstack([model.coef_.T, model.intercept_]))
    # Stopping at steps of 1e-14 leaves an excess of 1e-13 to 2e-12 in L, by processor. L is λ-convex: an excess of e
    # leaves at most √(2e / λ) in W.
    excess = 5e-12
    assert objective(weights, x, y, lam) <= objective(theirs, x, y, lam) + excess
    near = 1e-6 + (2 * excess / lam) ** 0.5
    np.testing.assert_allclose(weights[:-1].T.numpy(), model.coef_, atol=near)
    np.testing.assert_allclose(bias.numpy(), model.intercept_ - model.intercept_.mean(), atol=near)


def test_float32_reaches_the_float64_minimum():
    x, y = features(2000, 32, 7, seed=1)
    x = (x - x.mean(0)) / x.std(0)

    def loss(weights, lam):
        weights = weights.double()
        logits = x.double() @ weights[:-1] + weights[-1]
        return (torch.nn.functional.cross_entropy(logits, y) + lam / 2 * weights[:-1].square().sum()).item()

    for lam in (1.0, 1e-3, 1e-5):
        exact = fit_logistic(x.double(), y, torch.zeros(33, 7, dtype=torch.float64), lam, tolerance=1e-13)
        single = fit_logistic(x, y, torch.zeros(33, 7), lam)
        assert loss(exact, lam) <= loss(single, lam) <= loss(exact, lam) * (1 + 1e-4) + 1e-6


@pytest.mark.parametrize(("dim", "classes"), [(16, 2), (40, 13)])
def test_accuracy_equals_scikit_learn_at_the_same_strength(dim, classes):
    train, test = features(900, dim, classes, seed=2), features(400, dim, classes, seed=3)
    result = linear_probe(*train, *test, regularization=1e-3)
    scaler = StandardScaler().fit(train[0].double().numpy())
    scaled = [torch.from_numpy(scaler.transform(x.double().numpy())) for x in (train[0], test[0])]
    model = sklearn_logistic(scaled[0], train[1], 1e-3, solver="lbfgs", tol=1e-6)
    probabilities = model.predict_proba(scaled[1].numpy())
    top5 = np.argsort(-probabilities, axis=1)[:, :5]
    # the fit stops 1e-7 above the minimum: at most one sample in 400 may lie between the two boundaries
    assert result.top1 == pytest.approx(model.score(scaled[1].numpy(), test[1].numpy()), abs=1 / 400 + 1e-9)
    assert result.top5 == pytest.approx((top5 == test[1].numpy()[:, None]).any(1).mean(), abs=1 / 400 + 1e-9)
    assert 1 / classes < result.top1 < 1
    assert result.held_out == {}


def test_the_best_held_out_strength_is_used():
    train, test = features(400, 60, 5, seed=4, spread=0.3), features(400, 60, 5, seed=5, spread=0.3)
    result = linear_probe(*train, *test)
    assert tuple(result.held_out) == linear.GRID
    assert result.held_out[result.regularization] == max(result.held_out.values())
    again = linear_probe(*train, *test, regularization=result.regularization)
    assert result.top1 == pytest.approx(again.top1, abs=1 / 400 + 1e-9)  # the same fit from another start


def test_a_strong_penalty_is_chosen_where_it_helps():
    """A weak shift in all of 80 dimensions, 60 samples: a strong penalty fits the centroids, a weak one the noise."""
    generator = torch.Generator().manual_seed(6)

    def draw(n):
        y = torch.randint(2, (n,), generator=generator)
        return torch.randn(n, 80, generator=generator) + 0.4 * y[:, None], y

    train, test = draw(60), draw(2000)
    chosen = linear_probe(*train, *test)
    weak = linear_probe(*train, *test, regularization=1e-6)
    assert chosen.regularization >= 1e-2
    assert chosen.top1 > weak.top1 + 0.01


def test_equal_accuracies_choose_the_strongest():
    x = torch.cat([torch.randn(50, 3) + 50, torch.randn(50, 3) - 50])
    y = torch.arange(100) // 50
    result = linear_probe(x, y, x, y)
    assert set(result.held_out.values()) == {1.0}
    assert result.regularization == 1.0
    assert result.top1 == 1.0


def test_the_test_set_has_no_say():
    train, test = features(200, 12, 3, seed=7), features(100, 12, 3, seed=8)
    one, other = linear_probe(*train, *test), linear_probe(*train, test[0][:30], (test[1][:30] + 1) % 3)
    assert one.held_out == other.held_out
    assert one.regularization == other.regularization


def test_held_out_part_is_a_share_of_every_class_and_never_a_whole_class():
    y = torch.tensor([0] * 50 + [1] * 10 + [2] * 2 + [3])
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(9))]
    mask = linear._held_out(y, 0.2, seed=0)
    assert torch.bincount(y[mask], minlength=4).tolist() == [10, 2, 1, 0]
    assert torch.equal(mask, linear._held_out(y, 0.2, seed=0))
    assert not torch.equal(mask, linear._held_out(y, 0.2, seed=1))
    assert torch.bincount(y[linear._held_out(y, 0.99, seed=0)], minlength=4).tolist() == [49, 9, 1, 0]


def test_scale_and_offset_of_a_feature_do_not_matter():
    train, test = features(300, 8, 4, seed=10), features(200, 8, 4, seed=11)
    scale, offset = torch.logspace(-3, 3, 8), torch.linspace(-5, 5, 8)
    plain = linear_probe(train[0].double(), train[1], test[0].double(), test[1])
    moved = linear_probe(
        train[0].double() * scale + offset * scale, train[1], test[0].double() * scale + offset * scale, test[1]
    )
    assert moved.top1 == pytest.approx(plain.top1, abs=1 / 200 + 1e-9)
    assert moved.regularization == plain.regularization


def test_constant_and_repeated_dimensions_do_no_harm():
    train, test = features(300, 8, 4, seed=12), features(200, 8, 4, seed=13)

    def widen(x):
        return torch.cat([x, torch.full((len(x), 2), 1e6), x[:, :3]], dim=1)

    plain = linear_probe(*train, *test, regularization=1e-4)
    wide = linear_probe(widen(train[0]), train[1], widen(test[0]), test[1], regularization=1e-4)
    assert wide.top1 == pytest.approx(plain.top1, abs=0.02)


def test_blocks_of_rows_do_not_change_the_fit(monkeypatch):
    train, test = features(200, 6, 3, seed=14), features(90, 6, 3, seed=15)
    x, y = train[0].double(), train[1]
    whole = fit_logistic(x, y, torch.zeros(7, 3, dtype=torch.float64), 1e-2, tolerance=1e-13)
    monkeypatch.setattr(linear, "BLOCK_ROWS", 33)
    torch.testing.assert_close(
        fit_logistic(x, y, torch.zeros(7, 3, dtype=torch.float64), 1e-2, tolerance=1e-13), whole, rtol=1e-3, atol=1e-4
    )
    assert linear_probe(*train, *test, regularization=1e-2).top1 > 1 / 3


def test_sparse_labels_unseen_classes_and_one_class():
    train, test = features(200, 6, 3, seed=16), features(100, 6, 3, seed=17)
    dense = linear_probe(*train, *test, regularization=1e-2)
    far = torch.tensor([7, 5_000_000_000, 11])
    assert linear_probe(train[0], far[train[1]], test[0], far[test[1]], regularization=1e-2).top1 == dense.top1
    unseen = test[1].clone()
    unseen[:50] = 77
    assert linear_probe(*train, test[0], unseen, regularization=1e-2).top5 == 0.5
    one = linear_probe(train[0], torch.full((200,), 4), test[0], torch.tensor([4] * 75 + [5] * 25))
    assert (one.top1, one.top5) == (0.75, 0.75)


def test_works_inside_no_grad_and_leaves_its_inputs():
    train, test = features(100, 5, 3, seed=18), features(50, 5, 3, seed=19)
    before = train[0].clone()
    with torch.no_grad():
        result = linear_probe(*train, *test)
    assert result == linear_probe(*train, *test)
    assert torch.equal(before, train[0])


X, Y = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X, Y, X[:, :2], Y), {}, "equal width"),
        ((X, Y[:5], X, Y), {}, "train_y must hold one label"),
        ((X, Y, X, Y[:5]), {}, "test_y must hold one label"),
        ((X, Y - 1, X, Y), {}, "negative labels"),
        ((X / 0, Y, X, Y), {}, "not finite"),
        ((X, torch.arange(8), X, Y), {}, "one sample a class"),
        ((X, Y, X, Y), {"regularization": -1.0}, "regularization must be >= 0, got -1.0"),
    ],
)
def test_bad_input_is_named(arguments, options, message):
    with pytest.raises(UserError, match=message):
        linear_probe(*arguments, **options)
