"""The averaging kernel: results, tails, alignment and traffic."""

import pytest
import torch
from fastssl_kernels.ema import cost, ema_reference
from fastssl_kernels.ema.launch import CHUNK, ema_launch
from proof.interpreter import checked

SHAPES = [(), (0,), (1,), (3,), (7, 5), (64, 33), (CHUNK + 11,), (5, 4, 3, 3)]
TOLERANCE = {torch.float64: 1e-15, torch.float32: 2e-7, torch.float16: 2**-11 + 1e-6, torch.bfloat16: 2**-8 + 1e-6}


def names(targets: list[torch.Tensor], onlines: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"target_{i}": t for i, t in enumerate(targets)} | {f"online_{i}": o for i, o in enumerate(onlines)}


@pytest.mark.parametrize(
    ("target", "online", "momentum"),
    [
        *((torch.float32, torch.float32, m) for m in (0.0, 0.3, 0.996, 1.0, torch.tensor(0.99))),
        (torch.float64, torch.float64, torch.tensor(0.99).double()),
        (torch.float32, torch.bfloat16, 0.996),
        (torch.bfloat16, torch.bfloat16, 0.5),
        (torch.bfloat16, torch.bfloat16, 1.0),
        (torch.float16, torch.float32, 0.9),
    ],
)
def test_it_is_the_weighted_mean_in_any_order_of_programs(target, online, momentum):
    torch.manual_seed(0)
    start = [torch.randn(s).to(target) for s in SHAPES]
    onlines = [torch.randn(s).to(online) for s in SHAPES]
    results = []
    for seed in range(2):
        targets = [t.clone() for t in start]
        with checked(seed, **names(targets, onlines)) as work:
            ema_launch(targets, onlines, momentum)
        results.append(targets)
    assert work.launches == 1
    for t, again, s, o in zip(*results, start, onlines, strict=True):
        assert torch.equal(t, again)
        expected = ema_reference(s.double(), o, float(momentum))
        torch.testing.assert_close(t.double(), expected, rtol=TOLERANCE[target], atol=4 * TOLERANCE[target])
        if momentum == 1.0:
            assert torch.equal(t, s)
        if momentum == 0.0 and target == online:
            assert torch.equal(t, o)


def test_mixed_lists_take_one_launch_a_pair_of_dtypes():
    torch.manual_seed(0)
    kinds = [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float32, torch.float32)]
    targets = [torch.randn(9, 3).to(t) for t, _ in kinds]
    onlines = [torch.randn(9, 3).to(o) for _, o in kinds]
    expected = [ema_reference(t, o, 0.5) for t, o in zip(targets, onlines, strict=True)]
    with checked(**names(targets, onlines)) as work:
        ema_launch(targets, onlines, 0.5)
    assert work.launches == 2
    for t, e in zip(targets, expected, strict=True):
        torch.testing.assert_close(t, e, rtol=2**-8, atol=1e-6)


def test_layouts_slices_and_unaligned_addresses():
    torch.manual_seed(0)
    storage = torch.randn(4000)
    outside = storage.clone()
    targets = [
        torch.randn(4, 6, 3, 3).to(memory_format=torch.channels_last),
        storage[1:2000],
        storage[2003::7],
        torch.randn(6, 5).t(),
    ]
    onlines = [torch.randn(4, 6, 3, 3), torch.randn(1999), torch.randn(targets[2].numel()), torch.randn(5, 6)]
    expected = [ema_reference(t, o, 0.75) for t, o in zip(targets, onlines, strict=True)]
    versions = [t._version for t in targets]
    ema_launch(targets, onlines, 0.75)
    for t, e in zip(targets, expected, strict=True):
        torch.testing.assert_close(t, e)
    assert all(t._version > v for t, v in zip(targets, versions, strict=True))
    mask = torch.ones(4000, dtype=torch.bool)
    mask[1:2000] = mask[2003::7] = False
    assert torch.equal(storage[mask], outside[mask])


@pytest.mark.parametrize(("target", "online"), [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)])
def test_it_moves_what_the_formula_says(target, online):
    sizes = [CHUNK + 5, 1, 1000, 2049]
    targets, onlines = [torch.zeros(n).to(target) for n in sizes], [torch.ones(n).to(online) for n in sizes]
    with checked(**names(targets, onlines)) as work:
        ema_launch(targets, onlines, 0.5)
    parameters = sum(work.by_tensor[name, kind] for name in names(targets, onlines) for kind in ("load", "store"))
    assert parameters == cost.parameter_bytes(sizes, target.itemsize, online.itemsize)
    assert work.loaded + work.stored == parameters + cost.table_bytes(sizes, CHUNK)
    if target == online == torch.float32:
        assert parameters == 12 * sum(sizes)
