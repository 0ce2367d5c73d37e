"""The parameter average against float64 arithmetic and against torch's interpolation."""

from __future__ import annotations

import pytest
import torch
from fastssl_kernels.ema import ema_reference, ema_update_, native
from fastssl_kernels.ema.flat import flat, in_order_of, is_dense, same_order
from torch.utils._python_dispatch import TorchDispatchMode

SHAPES = [(), (0,), (1,), (7,), (127, 33), (5, 3, 3, 3), (64, 16, 1, 1)]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors are small here, and a second thread only waits for the first on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, params=["interpolation", "sweep"])
def sweep(request, monkeypatch):
    """Whether the library in C is there, which not every machine can build."""
    if request.param == "sweep" and not native.available():
        pytest.skip("the library in C is not built: no compiler was found")
    monkeypatch.setattr(native, "available", lambda: request.param == "sweep")


def lists(target: torch.dtype, online: torch.dtype, seed: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    pairs = [[torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES] for _ in range(2)]
    return [t.to(target) for t in pairs[0]], [o.to(online) for o in pairs[1]]


# Half a unit in the last place of the result, and three rounded operations of the wide type before it.
TOLERANCE = {torch.float64: 1e-15, torch.float32: 2e-7, torch.float16: 2**-11 + 1e-6, torch.bfloat16: 2**-8 + 1e-6}


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.5, 0.996, 0.9999, 1.0])
@pytest.mark.parametrize(
    ("target", "online"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
        (torch.float32, torch.float64),
    ],
)
def test_it_is_the_weighted_mean(target, online, momentum):
    targets, onlines = lists(target, online)
    expected = [ema_reference(t.double(), o, momentum) for t, o in zip(targets, onlines, strict=True)]
    untouched = [o.clone() for o in onlines]
    ema_update_(targets, onlines, momentum)
    for t, e, o, u in zip(targets, expected, onlines, untouched, strict=True):
        assert t.dtype == target
        # The result is a convex combination, but its terms may cancel: measure against their size.
        torch.testing.assert_close(t.double(), e, rtol=TOLERANCE[target], atol=4 * TOLERANCE[target])
        assert torch.equal(o, u)


def test_the_ends_are_exact():
    """m = 1 keeps the target bit for bit, m = 0 copies, and equal networks stay equal whatever m."""
    targets, onlines = lists(torch.float32, torch.float32)
    before = [t.clone() for t in targets]
    ema_update_(targets, onlines, 1.0)
    assert all(torch.equal(t, b) for t, b in zip(targets, before, strict=True))
    ema_update_(targets, onlines, 0.0)
    assert all(torch.equal(t, o) for t, o in zip(targets, onlines, strict=True))
    for momentum in (0.1, 0.5, 0.996):
        ema_update_(targets, onlines, momentum)
        assert all(torch.equal(t, o) for t, o in zip(targets, onlines, strict=True))


def test_many_steps_converge_geometrically():
    target, online = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    for _ in range(50):
        ema_update_([target], [online], 0.9)
    torch.testing.assert_close(target, torch.full_like(target, 1 - 0.9**50), rtol=1e-12, atol=0)


def test_mixed_lists_layouts_and_slices():
    torch.manual_seed(0)
    storage = torch.randn(9, 10)
    outside = storage[:, 7:].clone()
    targets = [
        torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last),
        torch.randn(4, 3, 3, 3),
        storage[:, 1:7:2],
        torch.randn(6, 5).t(),
        torch.randn(8).bfloat16(),
        torch.nn.Parameter(torch.randn(3, 3)),
    ]
    onlines = [
        torch.randn(4, 3, 3, 3),
        torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last),
        torch.randn(9, 3),
        torch.randn(5, 6),
        torch.randn(8),
        torch.nn.Parameter(torch.randn(3, 3)),
    ]
    expected = [ema_reference(t.detach(), o.detach(), 0.75) for t, o in zip(targets, onlines, strict=True)]
    strides = [t.stride() for t in targets]
    ema_update_(iter(targets), iter(onlines), torch.tensor(0.75))
    for t, e in zip(targets, expected, strict=True):
        torch.testing.assert_close(t.detach(), e)
    assert [t.stride() for t in targets] == strides
    assert torch.equal(storage[:, 7:], outside)


def test_a_scalar_tensor_is_read_without_the_dispatcher():
    class Names(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.append(func.name())
            return func(*args, **(kwargs or {}))

    targets, onlines = lists(torch.float32, torch.float32)
    momentum = torch.tensor(0.99)
    with Names() as names:
        ema_update_(targets, onlines, momentum)
    assert names.seen == ["aten::_foreach_lerp_.Scalar"]  # whoever listens is told what happens, and that is all


LAYOUTS = {
    "contiguous": lambda t: t,
    "channels-last": lambda t: t.to(memory_format=torch.channels_last),
    "permuted": lambda t: t.permute(3, 1, 0, 2),
    "slice": lambda t: torch.stack([t, t], -1)[..., 0],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("online", LAYOUTS)
@pytest.mark.parametrize("target", LAYOUTS)
def test_every_layout_gives_the_numbers_of_torch_lerp(target, online, dtype):
    """Two loops do the work, one of which sees flat memory only; the shape is the same in any order of dimensions."""
    generator = torch.Generator().manual_seed(0)
    t, o = (torch.randn(6, 6, 6, 6, generator=generator).to(dtype) for _ in range(2))
    t, o = LAYOUTS[target](t), LAYOUTS[online](o)
    bias, other = (torch.randn(6, generator=generator).to(dtype) for _ in range(2))
    for momentum in (0.996, 0.51, 0.5, 0.2):
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        expected = [torch.lerp(a.to(wide), b.to(wide), 1 - momentum).to(dtype) for a, b in ((t, o), (bias, other))]
        strides, untouched = t.stride(), o.clone()
        ema_update_([t, bias], [o, other], momentum)
        for ours, theirs in zip((t, bias), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        assert t.stride() == strides
        assert torch.equal(o, untouched)


def test_a_backward_pass_that_is_still_to_come_may_need_the_online_network():
    """MoCo's authors average between the forward and the backward pass."""
    online, target = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3).requires_grad_(False)
    loss = online(torch.randn(5, 4, requires_grad=True)).square().sum()
    versions = [[p._version for p in module.parameters()] for module in (online, target)]
    ema_update_(target.parameters(), online.parameters(), 0.99)
    loss.backward()
    assert [p._version for p in online.parameters()] == versions[0]
    assert [p._version for p in target.parameters()] == [version + 1 for version in versions[1]]


def test_empty_lists_do_nothing():
    ema_update_([], [], 0.5)


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested")
def test_wrong_input_is_named():
    t = torch.ones(2, 3)
    with pytest.raises(ValueError, match="target and online must be equally long, got 1 and 2 tensors"):
        ema_update_([t], [t, t], 0.5)
    with pytest.raises(ValueError, match=r"target\[1\] and online\[1\] differ in shape: \(2, 3\) and \(3, 2\)"):
        ema_update_([t, t], [t, t.t()], 0.5)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\], got 1.5"):
        ema_update_([t], [t], 1.5)
    with pytest.raises(ValueError, match="momentum must be a number or a zero-dimensional tensor"):
        ema_update_([t], [t], torch.ones(2))
    with pytest.raises(TypeError, match="floating dtype"):
        ema_update_([t.long()], [t], 0.5)
    with pytest.raises(ValueError, match="all tensors must be on cpu"):
        ema_update_([t], [torch.empty(2, 3, device="meta")], 0.5)
    with pytest.raises(ValueError, match=r"zero-dimensional tensor of floating dtype, got torch.float32 \(1,\)"):
        ema_update_([t], [t], torch.ones(1))
    for layout in (torch.sparse_coo, torch.sparse_csr):
        with pytest.raises(TypeError, match=rf"online\[0\] must be a dense tensor, got layout {layout}: pass"):
            ema_update_([t], [t.to_sparse(layout=layout)], 0.75)
    with pytest.raises(TypeError, match=r"target\[0\] must be a dense tensor, got a nested tensor: pass"):
        ema_update_([torch.nested.as_nested_tensor([t, t])], [t], 0.75)


@pytest.mark.parametrize(
    ("tensor", "dense"),
    [
        (torch.ones(3, 4), True),
        (torch.ones(3, 4).t(), True),
        (torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last), True),
        (torch.ones(2, 3, 4, 5).permute(3, 1, 0, 2), True),
        (torch.ones(1, 3, 1, 1).to(memory_format=torch.channels_last), True),
        (torch.ones(()), True),
        (torch.ones(0, 3), True),
        (torch.ones(6, 4)[::2], False),
        (torch.ones(6, 4)[:, :3], False),
        (torch.ones(1).expand(4), False),
        (torch.ones(4, 1).expand(4, 3), False),
        (torch.ones(10).as_strided((3, 3), (2, 1)), False),
    ],
)
def test_dense_tensors_have_a_flat_alias(tensor, dense):
    assert is_dense(tensor) == dense
    if dense:
        alias = flat(tensor)
        assert alias.shape == (tensor.numel(),)
        assert alias.data_ptr() == tensor.data_ptr()
        assert sorted(alias.tolist()) == sorted(tensor.reshape(-1).tolist())


def test_memory_order_ignores_dimensions_of_size_one():
    plain = torch.randn(5, 4, 1, 1)
    last = plain.to(memory_format=torch.channels_last)
    assert same_order(plain, last)
    assert in_order_of(last, plain) is last
    wide = torch.randn(5, 4, 3, 3)
    assert not same_order(wide, wide.to(memory_format=torch.channels_last))
    ordered = in_order_of(wide, wide.to(memory_format=torch.channels_last))
    assert torch.equal(ordered, wide)
    assert ordered.is_contiguous(memory_format=torch.channels_last)


def test_it_compiles_into_one_graph():
    targets, onlines = lists(torch.float32, torch.float32)
    expected = [t.clone() for t in targets]
    ema_update_(expected, onlines, 0.9)
    torch.compile(ema_update_, fullgraph=True, backend="aot_eager")(targets, onlines, 0.9)
    for ours, theirs in zip(targets, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_lists_are_checked_whenever_they_come():
    """A tensor may lie where one lay that is gone, or have got other data: its identity says nothing."""
    targets, onlines = lists(torch.float32, torch.float32)
    for _ in range(2):
        ema_update_(targets, onlines, 0.9)
    for i in range(len(targets)):
        wrong = list(onlines)
        wrong[i] = torch.zeros(*onlines[i].shape, 2)
        with pytest.raises(ValueError, match="shape"):
            ema_update_(targets, wrong, 0.9)
    for _ in range(100):
        pair = torch.zeros(3), torch.ones(3)
        ema_update_([pair[0]], [pair[1]], 0.5)
        del pair
        with pytest.raises(ValueError, match="shape"):
            ema_update_([torch.zeros(3)], [torch.ones(3, 3)], 0.5)
    target, online = torch.zeros(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    ema_update_([target], [online], 0.75)
    target.data = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
    ema_update_([target], [online], 0.75)
    torch.testing.assert_close(target, 0.25 * online)
    target.data = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match="shape"):
        ema_update_([target], [online], 0.75)
