"""LARS against a NumPy transcription of its three published forms, and its habits as a torch optimizer."""

from __future__ import annotations

import copy
import math
import weakref

import numpy as np
import pytest
import torch
from fastssl_kernels.lars import LARS, exclude_from_adaptation, lars_reference
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

ETA = 0.001


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors are small here, and a second thread only waits for the first on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def numpy_lars(w, g, v, lr, momentum, decay, variant, nesterov, adapt):
    """Written from the table of variants, float64, one tensor."""
    wn, u = np.sqrt((w * w).sum()), g + decay * w
    ratio = 1.0
    if adapt and variant in "AB":
        un = np.sqrt((u * u).sum())
        ratio = ETA * wn / un if wn > 0 and un > 0 else 1.0
    if adapt and variant == "C":
        gn = np.sqrt((g * g).sum())
        if wn > 0 and gn > 0:
            ratio = ETA * wn / (gn + decay * wn + 1e-8)
        else:
            u = g
    inside, outside = (lr, 1.0) if variant == "A" else (1.0, lr)
    step = inside * ratio * u
    v = momentum * v + step
    return w - outside * (momentum * v + step if nesterov else v), v


def toy() -> nn.Sequential:
    """Three layers with batch norm, an all-zero weight, a scalar, an empty tensor and a transposed (dense) weight."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Linear(7, 11))
    net.register_parameter("zero_weight", nn.Parameter(torch.zeros(4, 3)))
    net.register_parameter("zero_grad_weight", nn.Parameter(torch.randn(6, 2)))
    net.register_parameter("scalar", nn.Parameter(torch.tensor(0.7)))
    net.register_parameter("empty", nn.Parameter(torch.empty(0, 3)))
    net.register_parameter("transposed", nn.Parameter(torch.randn(13, 9).t()))
    return net


def set_gradients(net: nn.Module, step: int, dtype: torch.dtype | None = None, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for name, p in net.named_parameters():
        g = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 10 ** (step % 5 - 3)
        p.grad = (torch.zeros_like(g) if name == "zero_grad_weight" else g * scale).to(dtype or p.dtype)


def lr_at(step: int) -> float:
    """Warm-up from 0, then cosine: A and B differ only while this changes."""
    return 4.8 * step / 5 if step < 5 else 4.8 * 0.5 * (1 + math.cos(math.pi * (step - 5) / 15))


@pytest.mark.parametrize("policy", ["bias_and_norm", "none"])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("variant", ["A", "B", "C"])
def test_twenty_steps_follow_the_published_form(variant, nesterov, policy):
    net = toy().double()
    optimizer = LARS(exclude_from_adaptation(net, policy), 0.0, weight_decay=1e-2, variant=variant, nesterov=nesterov)
    weights = {n: p.detach().numpy().copy() for n, p in net.named_parameters()}
    buffers = {n: np.zeros_like(w) for n, w in weights.items()}
    for step in range(20):
        set_gradients(net, step)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step)
        optimizer.step()
        for name, p in net.named_parameters():
            excluded = policy == "bias_and_norm" and p.ndim <= 1
            weights[name], buffers[name] = numpy_lars(
                weights[name],
                p.grad.numpy(),
                buffers[name],
                lr_at(step),
                0.9,
                0.0 if excluded else 1e-2,
                variant,
                nesterov,
                not excluded,
            )
    for name, p in net.named_parameters():
        np.testing.assert_allclose(p.detach().numpy(), weights[name], rtol=1e-10, atol=1e-13, err_msg=name)
        buffer = optimizer.state[p]["momentum_buffer"].numpy()
        np.testing.assert_allclose(buffer, buffers[name], rtol=1e-10, atol=1e-13, err_msg=name)


@pytest.mark.parametrize("adapt", [True, False])
@pytest.mark.parametrize("variant", ["A", "B", "C"])
def test_the_reference_is_the_published_form(variant, adapt):
    rng = np.random.default_rng(0)
    for w, g in [
        (rng.normal(size=(5, 3)), rng.normal(size=(5, 3))),
        (np.zeros((2, 2)), rng.normal(size=(2, 2))),
        (rng.normal(size=(2, 2)), np.zeros((2, 2))),
    ]:
        v = rng.normal(size=w.shape)
        out = lars_reference(
            *map(torch.from_numpy, (w, g, v)), lr=0.3, momentum=0.8, weight_decay=0.1, variant=variant, adapt=adapt
        )
        for ours, theirs in zip(out, numpy_lars(w, g, v, 0.3, 0.8, 0.1, variant, False, adapt), strict=True):
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-13)


# One step in float32: the norms and the update round at 2^-24; 8 units of slack. bf16 stores weights at 2^-9.
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 5e-7), (torch.bfloat16, 2**-8), (torch.float16, 2**-10)]
)
@pytest.mark.parametrize("variant", ["A", "B", "C"])
@pytest.mark.parametrize("gradient_size", [1e-6, 1.0, 1e4])
def test_one_step_rounds_like_its_dtype(variant, dtype, tolerance, gradient_size):
    torch.manual_seed(1)
    p = nn.Parameter(torch.randn(300, 1001, dtype=torch.float64).to(dtype))
    g = (torch.randn(300, 1001, dtype=torch.float64) * gradient_size).to(dtype)
    v = (torch.randn(300, 1001, dtype=torch.float64) * 0.01).to(dtype)
    before = p.detach().double()
    optimizer = LARS([p], 2.0, weight_decay=1e-4, variant=variant)
    optimizer.state[p]["momentum_buffer"] = v.clone()
    p.grad = g
    optimizer.step()
    w, buffer = lars_reference(before, g.double(), v.double(), lr=2.0, weight_decay=1e-4, variant=variant)
    assert (p.detach().double() - w).norm() <= tolerance * w.norm()
    assert (optimizer.state[p]["momentum_buffer"].double() - buffer).norm() <= tolerance * buffer.norm()


@pytest.mark.parametrize("variant", ["A", "B"])
def test_norm_of_the_decayed_gradient_survives_cancellation(variant):
    """g ≈ −λw: a converged network. The three products cancel to noise, the sum itself does not."""
    torch.manual_seed(2)
    p = nn.Parameter(torch.randn(64, 1000))
    decay = 0.1
    p.grad = -decay * p.detach() + 1e-5 * torch.randn(64, 1000)
    w, _ = lars_reference(
        p.detach().double(),
        p.grad.double(),
        torch.zeros(64, 1000).double(),
        lr=1.0,
        weight_decay=decay,
        variant=variant,
    )
    moved = w - p.detach().double()
    before = p.detach().double()
    LARS([p], 1.0, weight_decay=decay, variant=variant).step()
    # The direction itself is a difference of float32 numbers of size 0.1, known to 1e-8 / 1e-5.
    assert ((p.detach().double() - before) - moved).norm() <= 3e-3 * moved.norm()


@pytest.mark.parametrize("size", [1e-25, 1e-15, 1e15, 1e25])
def test_extreme_gradients_keep_their_norm(size):
    """Squares of these leave float32; the step of an adapted tensor does not depend on the gradient's size."""
    torch.manual_seed(3)
    start, direction = torch.randn(50, 40), torch.randn(50, 40)
    steps = []
    for factor in (1.0, size):
        p = nn.Parameter(start.clone())
        p.grad = direction * factor
        LARS([p], 100.0, variant="B").step()
        steps.append(p.detach() - start)
    assert (steps[0] - steps[1]).norm() <= 1e-5 * steps[0].norm()


def test_a_and_b_agree_until_the_learning_rate_changes():
    nets = [toy().double(), toy().double()]
    a, b = (LARS(exclude_from_adaptation(n), 0.5, variant=v) for n, v in zip(nets, "AB", strict=True))

    def distance() -> float:
        pairs = zip(*(n.parameters() for n in nets), strict=True)
        return max(float((p - q).detach().abs().max()) for p, q in pairs if p.numel())

    for step in range(10):
        if step == 5:
            assert distance() < 1e-12
            for optimizer in (a, b):
                for group in optimizer.param_groups:
                    group["lr"] = 0.05
        for net in nets:
            set_gradients(net, step)
        a.step()
        b.step()
    assert distance() > 1e-4


@pytest.mark.parametrize("variant", ["A", "B", "C"])
def test_scale_invariance_of_the_trust_ratio(variant):
    """Without weight decay the first step of an adapted tensor has length η‖w‖, whatever its gradient's size."""
    p = nn.Parameter(torch.randn(40, 30, dtype=torch.float64))
    before = p.detach().clone()
    p.grad = torch.randn(40, 30, dtype=torch.float64) * 1e5
    LARS([p], 1.0, eta=0.01, variant=variant).step()
    assert math.isclose(float((p.detach() - before).norm() / before.norm()), 0.01, rel_tol=1e-9)


def test_channels_last_is_the_same_mathematics():
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        net = nn.Sequential(nn.Conv2d(8, 6, 3), nn.Conv2d(6, 4, 1)).double().requires_grad_()
        torch.manual_seed(4)
        for p in net.parameters():
            nn.init.normal_(p)
        net = net.to(memory_format=layout)
        optimizer = LARS(exclude_from_adaptation(net), 1.0, weight_decay=0.1)
        for step in range(3):
            set_gradients(net, step)
            for p in net.parameters():
                if p.ndim == 4:
                    p.grad = p.grad.to(memory_format=layout)
            optimizer.step()
        for p in net.parameters():
            assert optimizer.state[p]["momentum_buffer"].stride() == p.stride()
        results.append([p.detach().clone() for p in net.parameters()])
    for plain, last in zip(*results, strict=True):
        torch.testing.assert_close(plain, last, rtol=1e-12, atol=1e-13)


def test_layouts_of_weight_and_gradient_may_differ():
    """Gradients of another order, weights that are not dense, a momentum buffer loaded in another order."""
    torch.manual_seed(5)
    storage = torch.randn(6, 20, dtype=torch.float64)
    cases = [
        (torch.randn(5, 4, 3, 3).double().to(memory_format=torch.channels_last), torch.contiguous_format),
        (torch.randn(5, 4, 3, 3).double(), torch.channels_last),
        (torch.randn(5, 4, 1, 1).double().to(memory_format=torch.channels_last), torch.contiguous_format),
    ]
    for weight, layout in cases:
        p = nn.Parameter(weight.clone())
        g = torch.randn(weight.shape, dtype=torch.float64)
        v = torch.randn(weight.shape, dtype=torch.float64)
        p.grad = g.clone(memory_format=layout)
        optimizer = LARS([p], 1.0, weight_decay=0.1)
        optimizer.state[p]["momentum_buffer"] = v.clone(memory_format=layout)
        w, buffer = lars_reference(p.detach().clone(), g, v, lr=1.0, weight_decay=0.1)
        optimizer.step()
        torch.testing.assert_close(p.detach(), w)
        torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], buffer)
    outside = storage[:, 15:].clone()
    p = nn.Parameter(storage[:, 2:15:3])
    w, _ = lars_reference(p.detach().clone(), torch.ones(6, 5).double(), torch.zeros(6, 5).double(), lr=1.0)
    p.grad = torch.ones(6, 5, dtype=torch.float64)
    LARS([p], 1.0).step()
    torch.testing.assert_close(p.detach(), w)
    assert p.data_ptr() == storage[:, 2:].data_ptr()
    assert torch.equal(storage[:, 15:], outside)


def test_resume_from_a_state_dict_is_identical():
    def run(interrupted: bool) -> list[torch.Tensor]:
        net = toy()
        optimizer = LARS(exclude_from_adaptation(net), 0.0, weight_decay=1e-3, variant="B")
        for step in range(8):
            if interrupted and step == 4:
                saved = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
                net = toy()
                optimizer = LARS(exclude_from_adaptation(net), 0.0, variant="B")
                net.load_state_dict(saved[0])
                optimizer.load_state_dict(saved[1])
            for group in optimizer.param_groups:
                group["lr"] = lr_at(step)
            set_gradients(net, step)
            optimizer.step()
        return [p.detach() for p in net.parameters()]

    for whole, resumed in zip(run(False), run(True), strict=True):
        assert torch.equal(whole, resumed)


def test_state_dict_is_torchs_and_names_the_momentum_buffer():
    net = toy()
    optimizer = LARS(exclude_from_adaptation(net), 0.1)
    set_gradients(net, 0)
    optimizer.step()
    state = optimizer.state_dict()
    assert set(state) == {"state", "param_groups"}
    assert all(set(entry) == {"momentum_buffer"} for entry in state["state"].values())
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    assert set(sgd.state_dict()["param_groups"][0]) >= {"lr", "momentum", "weight_decay", "nesterov", "params"}
    with pytest.raises(ValueError, match="saved with variant 'A'"):
        LARS(exclude_from_adaptation(net), 0.1, variant="C").load_state_dict(state)


def test_a_copy_keeps_averages_and_copies():
    online = [nn.Parameter(torch.randn(4, 3))]
    optimizer = LARS(online, 0.1, ema=([torch.zeros(4, 3)], online), ema_momentum=0.5)
    ours = copy.deepcopy(optimizer)
    (p,) = ours.param_groups[0]["params"]
    p.grad = torch.ones(4, 3)
    ours.step()
    torch.testing.assert_close(ours._averages[p], 0.5 * p.detach())
    assert torch.equal(optimizer._averages[online[0]], torch.zeros(4, 3))


def test_tensors_may_move_between_steps():
    """A parameter, its average or its momentum in new memory: what a step writes is what the user sees."""
    net = nn.Sequential(nn.Conv2d(4, 6, 3)).double()
    online = list(net.parameters())
    target = nn.Sequential(nn.Conv2d(4, 6, 3)).double()
    optimizer = LARS(online, 0.5, ema=(list(target.parameters()), online), ema_momentum=0.5)
    for step in range(4):
        if step == 1:
            net.to(memory_format=torch.channels_last)
        if step == 2:
            target.to(memory_format=torch.channels_last)
        if step == 3:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        set_gradients(net, step)
        buffers = [optimizer.state[p].get("momentum_buffer", torch.zeros_like(p)).clone() for p in online]
        expected = [lars_reference(p.detach(), p.grad, v, lr=0.5) for p, v in zip(online, buffers, strict=True)]
        averages = [t.detach().clone() for t in target.parameters()]
        optimizer.step()
        for p, t, a, (w, v) in zip(online, target.parameters(), averages, expected, strict=True):
            torch.testing.assert_close(p.detach(), w)
            torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], v)
            torch.testing.assert_close(t.detach(), 0.5 * a + 0.5 * w)


def test_gradients_are_not_kept_alive():
    p = nn.Parameter(torch.randn(3, 3))
    optimizer = LARS([p], 0.1)
    array = np.ones((3, 3), np.float32)
    p.grad = torch.from_numpy(array)
    memory = weakref.ref(array)
    del array
    optimizer.step()
    assert memory() is not None
    p.grad = None
    assert memory() is None


def test_parameters_without_gradient_are_left_alone():
    p, q = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3, 2))
    p.grad = torch.ones(3, 2)
    optimizer = LARS([p, q], 0.1, weight_decay=0.1)
    optimizer.step()
    assert torch.equal(q.detach(), torch.ones(3, 2))
    assert q not in optimizer.state
    assert not torch.equal(p.detach(), torch.ones(3, 2))


def test_options_of_a_group_win():
    p, q = nn.Parameter(torch.ones(4, 4).double()), nn.Parameter(torch.ones(4, 4).double())
    p.grad = q.grad = torch.full((4, 4), 2.0, dtype=torch.float64)
    groups = [{"params": [p]}, {"params": [q], "adapt": False, "weight_decay": 0.5, "lr": 0.01, "momentum": 0.0}]
    LARS(groups, 1.0, weight_decay=0.1, variant="B").step()
    w, _ = lars_reference(torch.ones(4, 4).double(), p.grad, torch.zeros(4, 4).double(), lr=1.0, weight_decay=0.1)
    torch.testing.assert_close(p.detach(), w)
    torch.testing.assert_close(q.detach(), torch.full((4, 4), 1.0 - 0.01 * (2.0 + 0.5), dtype=torch.float64))


class Names(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", ["A", "B", "C"])
def test_no_scalar_is_read_through_the_dispatcher(variant):
    net = toy()
    optimizer = LARS(exclude_from_adaptation(net), torch.tensor(0.1), weight_decay=1e-4, variant=variant)
    optimizer.found_inf = torch.zeros(())
    optimizer.grad_scale = torch.tensor(2.0)
    for step in range(2):
        set_gradients(net, step)
        with Names() as names:
            optimizer.step()
    assert names.seen
    assert not [n for n in names.seen if "_local_scalar_dense" in n or "nonzero" in n or "is_nonzero" in n]


def test_learning_rate_and_momentum_as_tensors():
    results = []
    for wrap in (float, torch.tensor, lambda x: torch.tensor(x, dtype=torch.float64)):
        net = toy()
        optimizer = LARS(exclude_from_adaptation(net), wrap(0.5), momentum=wrap(0.75))
        set_gradients(net, 0)
        optimizer.step()
        results.append([p.detach() for p in net.parameters()])
    for a, b, c in zip(*results, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize("variant", ["A", "B", "C"])
def test_loss_scale_is_taken_out_exactly(variant):
    """A power of two divides out without rounding, so the scaled run is bit-identical but for the sums of squares."""
    results = []
    for scale in (None, 2.0**12):
        net = toy()
        optimizer = LARS(exclude_from_adaptation(net), 0.3, weight_decay=1e-2, variant=variant)
        if scale:
            optimizer.grad_scale = torch.tensor(scale)
            optimizer.found_inf = torch.zeros(())
        for step in range(3):
            set_gradients(net, step, scale=scale or 1.0)
            optimizer.step()
        results.append([p.detach() for p in net.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("where", [0, 1, 5])
def test_a_gradient_that_is_not_finite_changes_nothing(bad, where):
    """Adapted (0), excluded (1) or later parameter (5): every tensor, state and average stays, the flag is raised."""
    net = toy()
    online = [p for p in net.parameters() if p.numel()]
    targets, copies = [torch.randn_like(p) for p in online], [p.detach().bfloat16() for p in online]
    optimizer = LARS(exclude_from_adaptation(net), 0.3, ema=(targets, online), copies=(copies, online))
    optimizer.found_inf = torch.zeros(())
    set_gradients(net, 0)
    optimizer.step()
    assert optimizer.found_inf == 0
    before = copy.deepcopy((net.state_dict(), optimizer.state_dict()["state"], targets, copies))
    set_gradients(net, 1)
    next(p for i, p in enumerate(net.parameters()) if i == where).grad.view(-1)[0] = bad
    online[-1].grad = None
    optimizer.step()
    assert optimizer.found_inf == 1
    after = (net.state_dict(), optimizer.state_dict()["state"], targets, copies)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    set_gradients(net, 2)
    optimizer.step()
    torch.testing.assert_close(net.state_dict(), before[0], rtol=0, atol=0)


def test_huge_finite_gradients_are_not_taken_for_infinite():
    p = nn.Parameter(torch.randn(30, 30))
    p.grad = torch.randn(30, 30) * 1e25
    optimizer = LARS([p], 1.0)
    optimizer.found_inf = torch.zeros(())
    before = p.detach().clone()
    optimizer.step()
    assert optimizer.found_inf == 0
    assert not torch.equal(p.detach(), before)


def test_torchs_gradient_scaler_drives_it():
    p = nn.Parameter(torch.randn(8, 8))
    optimizer = LARS([p], 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    start = p.detach().clone()
    scaler.scale((p * p).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    w, _ = lars_reference(start.double(), 2 * start.double(), torch.zeros(8, 8).double(), lr=0.1)
    torch.testing.assert_close(p.detach().double(), w, rtol=1e-6, atol=1e-7)
    middle = p.detach().clone()
    optimizer.zero_grad()
    scaler.scale((p * float("inf")).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(p.detach(), middle)
    assert scaler.get_scale() == 512.0


@pytest.mark.parametrize("as_tensor", [False, True])
def test_average_and_copies_follow_in_the_same_sweep(as_tensor):
    torch.manual_seed(6)
    # More than one chunk, so that the pieces must line up.
    online = [nn.Parameter(torch.randn(700, 801)), nn.Parameter(torch.randn(17)), nn.Parameter(torch.randn(5, 3, 3, 3))]
    online[2].data = online[2].data.to(memory_format=torch.channels_last)
    idle = nn.Parameter(torch.randn(9))
    lone = nn.Parameter(torch.randn(4, 4))
    targets = [torch.randn(p.shape) for p in [*online, idle]]
    copies = [torch.zeros(p.shape, dtype=torch.bfloat16) for p in online]
    optimizer = LARS([*online, idle, lone], 0.5, ema=(targets, [*online, idle]), copies=(copies, online))
    momentum = 0.97
    optimizer.ema_momentum = torch.tensor(momentum, dtype=torch.float64) if as_tensor else momentum
    start = [t.double() for t in targets]
    for p in [*online, lone]:
        p.grad = torch.randn(p.shape)
    optimizer.step()
    for t, s, p in zip(targets, start, [*online, idle], strict=True):
        torch.testing.assert_close(
            t.double(), momentum * s + (1 - momentum) * p.detach().double(), rtol=1e-6, atol=1e-7
        )
    for c, p in zip(copies, online, strict=True):
        assert torch.equal(c, p.detach().bfloat16())


@pytest.mark.parametrize("momentum", [1.5, torch.tensor(-0.1), math.nan])
def test_a_momentum_that_became_wrong_is_named_before_anything_changes(momentum):
    weight, target = nn.Parameter(torch.ones(3)), torch.zeros(3)
    optimizer = LARS([weight], 0.5, ema=([target], [weight]))
    weight.grad = torch.ones(3)
    optimizer.ema_momentum = momentum
    with pytest.raises(ValueError, match=r"ema_momentum must be in \[0, 1\], got"):
        optimizer.step()
    assert torch.equal(weight, torch.ones(3))
    assert torch.equal(target, torch.zeros(3))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"lr": -1.0}, ValueError, "lr must be ≥ 0, got -1.0"),
        ({"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\), got 1.0"),
        ({"weight_decay": -1e-6}, ValueError, "weight_decay must be ≥ 0"),
        ({"eta": 0.0}, ValueError, "eta must be > 0"),
        ({"variant": "D"}, ValueError, "variant must be one of A, B, C, got 'D'"),
        ({"lr": torch.ones(2)}, ValueError, "lr must be a number or a zero-dimensional tensor"),
        ({"ema": ([], [nn.Parameter(torch.ones(1))])}, ValueError, "ema needs two equally long lists, got 0 and 1"),
        (
            {"copies": ([torch.ones(2)], [nn.Parameter(torch.ones(2))])},
            ValueError,
            "is not a parameter of this optimizer",
        ),
    ],
)
def test_wrong_options_are_named(options, error, words):
    with pytest.raises(error, match=words):
        LARS([nn.Parameter(torch.ones(2))], **{"lr": 0.1, **options})


def test_wrong_partners_and_parameters_are_named():
    p = nn.Parameter(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"ema\[0\]\[0\] must be of shape \(2, 3\)"):
        LARS([p], 0.1, ema=([torch.ones(3, 2)], [p]))
    with pytest.raises(TypeError, match=r"ema\[0\]\[0\] must be of dtype torch.float32"):
        LARS([p], 0.1, ema=([torch.ones(2, 3).half()], [p]))
    with pytest.raises(TypeError, match="LARS needs floating parameters"):
        LARS([torch.ones(2, dtype=torch.long)], 0.1)
    with pytest.raises(TypeError, match=r"16 bits or more, got torch.float8_e4m3fn"):
        LARS([torch.ones(2).to(torch.float8_e4m3fn)], 0.1)
    with pytest.raises(TypeError, match="norms of whole tensors: plain parameters, got UninitializedParameter"):
        LARS(nn.LazyLinear(3).parameters(), 0.1)
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="dense gradients"):
        LARS(embedding.parameters(), 0.1).step()


def test_policies_of_exclusion():
    net = toy()
    groups = exclude_from_adaptation(net, weight_decay=1e-6)
    assert [g["adapt"] for g in groups] == [True, False]
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert all(p.ndim <= 1 for p in groups[1]["params"])
    assert (groups[0]["weight_decay"], groups[1]["weight_decay"]) == (1e-6, 0.0)
    assert sum(len(g["params"]) for g in groups) == len(list(net.parameters()))
    (everything,) = exclude_from_adaptation(net, "none")
    assert everything["adapt"]
    assert "weight_decay" not in everything
    net[0].requires_grad_(False)
    assert net[0].weight not in set(exclude_from_adaptation(net)[0]["params"])
    with pytest.raises(ValueError, match="policy must be one of"):
        exclude_from_adaptation(net, "bias")
    with pytest.raises(ValueError, match="no parameter that requires gradients"):
        exclude_from_adaptation(nn.ReLU())


def test_learning_rate_schedulers_of_torch_work():
    p = nn.Parameter(torch.randn(3, 3))
    optimizer = LARS([p], 1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    for _ in range(4):
        p.grad = torch.randn(3, 3)
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] < 1e-9
