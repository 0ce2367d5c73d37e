"""The LARS kernels: results against the float64 reference, the flag, tails, alignment and traffic."""

import copy

import pytest
import torch
import torchvision
from fastssl_kernels.lars import LARS, cost, lars_reference
from fastssl_kernels.lars.launch import BLOCK, BLOCKS, Launcher
from proof.interpreter import Work, checked
from torch import nn

# Vector and block boundaries, one element, none, a scalar, four dimensions; LONG passes the end of a chunk too.
SHAPES = [(BLOCK + 5,), (33, 31), (1,), (0,), (), (6, 5, 3, 3), (4, 4)]
LONG = [(BLOCK * BLOCKS + 5,), *SHAPES[1:]]
TOLERANCE = {torch.float64: 1e-13, torch.float32: 5e-7, torch.float16: 2**-10, torch.bfloat16: 2**-8}


class Step:
    """One step of LARS on the kernels, from given tensors; `adapt` alternates over groups of two tensors."""

    def __init__(self, dtype: torch.dtype = torch.float32, *, seed: int = 0, shapes=SHAPES, **options) -> None:
        torch.manual_seed(seed)
        self.parameters = [nn.Parameter(torch.randn(s, dtype=torch.float64).to(dtype)) for s in shapes]
        if len(shapes) > 6:
            self.parameters[6].data.zero_()
        self.groups = [
            {"params": self.parameters[0::2], "weight_decay": 0.01},
            {"params": self.parameters[1::2], "adapt": False, "lr": 0.25},
        ]
        self.optimizer = LARS(self.groups, **{"lr": 0.5, **options})
        for p in self.parameters:
            p.grad = (torch.randn(p.shape, dtype=torch.float64) * 0.1).to(dtype)
            state = torch.randn(p.shape, dtype=torch.float64).to(dtype)
            self.optimizer.state[p]["momentum_buffer"] = state
        self.optimizer._sweep = lambda device: Launcher().sweep

    def tensors(self) -> dict[str, torch.Tensor]:
        optimizer, named = self.optimizer, {}
        for i, p in enumerate(self.parameters):
            named |= {f"w{i}": p.data, f"g{i}": p.grad, f"v{i}": optimizer.state[p]["momentum_buffer"]}
        named |= {f"average{i}": t for i, t in enumerate(optimizer._averages.values())}
        named |= {f"copy{i}": t for i, t in enumerate(optimizer._copies.values())}
        scalars = [o for g in optimizer.param_groups for o in (g["lr"], g["momentum"]) if isinstance(o, torch.Tensor)]
        return named | {f"scalar{i}": t for i, t in enumerate({id(s): s for s in scalars}.values())}

    def run(self, seed: int = 0) -> Work:
        with checked(seed, **self.tensors()) as work:
            self.optimizer.step()
        return work

    def expected(self, unscale: float = 1.0) -> list[tuple[torch.Tensor, torch.Tensor]]:
        results = []
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                options = {k: float(group[k]) for k in ("lr", "momentum", "weight_decay", "eta")}
                v = self.optimizer.state[p]["momentum_buffer"]
                w, v = lars_reference(
                    p.detach().double(),
                    p.grad.double() * unscale,
                    v.double(),
                    **options,
                    **{k: group[k] for k in ("variant", "nesterov", "adapt")},
                )
                results.append((w, v))
        return results

    def check(self, expected: list[tuple[torch.Tensor, torch.Tensor]], tolerance: float) -> None:
        ordered = [p for group in self.optimizer.param_groups for p in group["params"]]
        for p, (w, v) in zip(ordered, expected, strict=True):
            buffer = self.optimizer.state[p]["momentum_buffer"]
            assert (p.detach().double() - w).norm() <= tolerance * w.norm()
            assert (buffer.double() - v).norm() <= tolerance * v.norm()


@pytest.mark.parametrize(
    ("dtype", "variant", "nesterov"),
    [(torch.float32, variant, nesterov) for variant in "ABC" for nesterov in (False, True)]
    + [
        (torch.float64, "A", False),
        (torch.float16, "B", True),
        (torch.bfloat16, "A", False),
        (torch.bfloat16, "C", True),
    ],
)
def test_one_step_follows_the_reference_in_any_order_of_programs(dtype, variant, nesterov):
    steps = [Step(dtype, shapes=LONG, variant=variant, nesterov=nesterov) for _ in range(2)]
    expected = steps[0].expected()
    for seed, step in enumerate(steps):
        work = step.run(seed)
        step.check(expected, TOLERANCE[dtype])
    assert work.launches == 2
    for p, q in zip(steps[0].parameters, steps[1].parameters, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("variant", ["A", "C"])
def test_options_on_the_device(variant):
    """Learning rate and momentum as tensors, a loss scale, and a clear flag."""
    lr, momentum = torch.tensor(0.5), torch.tensor(0.75)
    step = Step(variant=variant, lr=lr, momentum=momentum)
    step.optimizer.param_groups[1]["lr"] = lr
    step.optimizer.grad_scale = torch.tensor(2.0**10)
    step.optimizer.found_inf = torch.zeros(())
    for p in step.parameters:
        p.grad *= 2.0**10
    expected = step.expected(unscale=2.0**-10)
    step.run()
    step.check(expected, TOLERANCE[torch.float32])
    assert step.optimizer.found_inf == 0


def test_options_on_the_device_in_another_dtype():
    step = Step(lr=torch.tensor(0.5, dtype=torch.float64), momentum=torch.tensor(0.75, dtype=torch.float16))
    expected = step.expected()
    step.optimizer.step()
    step.check(expected, TOLERANCE[torch.float32])


@pytest.mark.parametrize(
    ("tensor", "element", "bad"),
    [(0, 0, torch.inf), (0, -1, torch.nan), (1, 5, -torch.inf), (2, 0, torch.inf), (4, 0, torch.nan)],
)
def test_a_gradient_that_is_not_finite_changes_nothing(tensor, element, bad):
    """In the first or last place of an adapted tensor, in one that is not adapted, in one of a single element."""
    step = with_partners()
    step.optimizer.found_inf = torch.zeros(())
    step.parameters[tensor].grad.view(-1)[element] = bad
    before = copy.deepcopy([t for name, t in step.tensors().items() if name[0] != "g"])
    step.run()
    assert step.optimizer.found_inf == 1
    for t, b in zip([t for name, t in step.tensors().items() if name[0] != "g"], before, strict=True):
        assert torch.equal(t, b)
    step.parameters[tensor].grad.zero_()
    step.run()
    for t, b in zip([t for name, t in step.tensors().items() if name[0] != "g"], before, strict=True):
        assert torch.equal(t, b)


def with_partners(copied: torch.dtype = torch.bfloat16) -> Step:
    """Averages of some parameters and low-precision copies of others, as BYOL's predictor has no target."""
    step = Step()
    online = step.parameters[:4]
    targets = [torch.randn(p.shape) for p in online]
    copies = [torch.zeros(p.shape, dtype=copied) for p in step.parameters[2:]]
    step.optimizer = LARS(
        step.groups, 0.5, ema=(targets, online), ema_momentum=0.97, copies=(copies, step.parameters[2:])
    )
    for p in step.parameters:
        step.optimizer.state[p]["momentum_buffer"] = torch.randn(p.shape)
    step.optimizer._sweep = lambda device: Launcher().sweep
    return step


@pytest.mark.parametrize("copied", [torch.bfloat16, torch.float16])
def test_averages_and_copies_in_the_same_sweep(copied):
    step = with_partners(copied)
    expected = step.expected()
    averages = {p: t.double() for p, t in step.optimizer._averages.items()}
    assert step.run().launches == 2
    step.check(expected, TOLERANCE[torch.float32])
    for p, target in step.optimizer._averages.items():
        torch.testing.assert_close(
            target.double(), 0.97 * averages[p] + 0.03 * p.detach().double(), rtol=1e-6, atol=1e-7
        )
    for p, c in step.optimizer._copies.items():
        assert torch.equal(c, p.detach().to(copied))


def test_channels_last_and_unaligned_tensors():
    torch.manual_seed(1)
    storage = torch.randn(3001)
    step = Step(shapes=[(8, 6, 3, 3), (8, 4, 1, 1), (3000,)])
    p, q, r = step.parameters
    p.data = p.data.to(memory_format=torch.channels_last)
    q.data = q.data.to(memory_format=torch.channels_last)
    r.data = storage[1:]
    expected = step.expected()
    step.optimizer.step()
    step.check(expected, TOLERANCE[torch.float32])
    assert p.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [1e-25, 1e-15, 1e15, 1e25])
def test_squares_beyond_float32_keep_their_norm(size):
    step = Step(shapes=[(3, 1000), (1,)], variant="B", momentum=0.0)
    step.parameters[0].grad = torch.randn(3, 1000) * size
    step.optimizer.found_inf = torch.zeros(())
    step.groups[0]["weight_decay"] = step.optimizer.param_groups[0]["weight_decay"] = 0.0
    expected = step.expected()
    step.run()
    assert step.optimizer.found_inf == 0
    step.check(expected, TOLERANCE[torch.float32])


@pytest.mark.parametrize(("dtype", "found"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)])
def test_a_step_moves_what_the_formula_says(dtype, found):
    step = Step(dtype, shapes=[(BLOCK * BLOCKS + 5,), (1030,), (64, 63)])
    sizes = [p.numel() for p in step.parameters]
    measured = [True, found, True]
    if found:
        step.optimizer.found_inf = torch.zeros(())
    work = step.run()
    parameters = sum(n for (name, _), n in work.by_tensor.items() if name[0] in "wgv")
    assert parameters == cost.parameter_bytes(sizes, dtype.itemsize, measured=measured)
    overhead = work.loaded + work.stored - parameters
    assert overhead == cost.table_bytes(sizes, BLOCK * BLOCKS, found=found)
    if found and dtype == torch.float32:
        assert parameters == 28 * sum(sizes)


def test_an_average_costs_eight_bytes_more():
    step = Step(shapes=[(5 * BLOCK,), (64, 63)])
    targets = [torch.zeros_like(p) for p in step.parameters]
    step.optimizer = LARS(step.parameters, 0.5, ema=(targets, step.parameters))
    for p in step.parameters:
        step.optimizer.state[p]["momentum_buffer"] = torch.zeros(p.shape)
    step.optimizer._sweep = lambda device: Launcher().sweep
    work = step.run()
    moved = sum(n for (name, _), n in work.by_tensor.items() if name[0] in "wgv" or name.startswith("average"))
    sizes = [p.numel() for p in step.parameters]
    assert moved == 36 * sum(sizes) == cost.parameter_bytes(sizes, averaged=True)


def test_tables_are_small_beside_the_parameters_of_resnet_50():
    with torch.device("meta"):
        sizes = [p.numel() for p in torchvision.models.resnet50().parameters()]
    assert cost.parameter_bytes(sizes) == 28 * 25_557_032
    assert cost.table_bytes(sizes, BLOCK * BLOCKS) < 0.03 * cost.parameter_bytes(sizes)
