"""Whatever is wrong with an argument of a public function is said in one sentence: its name, its value, the remedy.

What single operations refuse in shapes is tested beside them; here every function meets the same kinds of mistakes.
"""

import math
from collections.abc import Callable
from pathlib import Path

import fastssl_kernels
import pytest
import torch
from fastssl_kernels import (
    LARS,
    Queue,
    byol_loss,
    ema_update_,
    exclude_from_adaptation,
    info_nce,
    nearest_neighbor,
    nt_xent,
    relic,
    render_views,
    sample_negatives,
    sinkhorn,
    sinkhorn_from_features,
    swapped_prediction,
)
from fastssl_kernels.adapters import NTXentLoss, SwaVLoss
from torch._subclasses import FakeTensorMode

IMAGE = torch.zeros(1, 9, 9, 3, dtype=torch.uint8)
ONE = torch.zeros(1, 16)


def z(rows=8, width=4):
    return torch.ones(rows, width)


def swapped(**change):
    arguments = {"z": z(), "prototypes": z(5), "codes": torch.full((2, 4, 5), 0.2), "temperature": 0.1, **change}
    return swapped_prediction(arguments.pop("z"), arguments.pop("prototypes"), arguments.pop("codes"), **arguments)


def related(**change):
    arguments = {"online": z(), "target": z(), "views": (2, 0), "temperature": 0.1, "alpha": 1.0, **change}
    return relic(arguments.pop("online"), arguments.pop("target"), **arguments)


# Every argument that takes rows, by its name: the function, called with something in its place.
ROWS: dict[str, tuple[str, Callable[[object], object]]] = {
    "nt_xent z": ("z", lambda x: nt_xent(x, temperature=0.1)),
    "nt_xent queue": ("queue", lambda x: nt_xent(z(), queue=x, temperature=0.1)),
    "info_nce query": ("query", lambda x: info_nce(x, z(), temperature=0.1)),
    "info_nce key": ("key", lambda x: info_nce(z(), x, temperature=0.1)),
    "info_nce queue": ("queue", lambda x: info_nce(z(), z(), queue=x, temperature=0.1)),
    "relic online": ("online", lambda x: related(online=x)),
    "relic target": ("target", lambda x: related(target=x)),
    "sinkhorn scores": ("scores", sinkhorn),
    "sinkhorn queue": ("queue", lambda x: sinkhorn(z(), queue=x)),
    "sinkhorn_from_features z": ("z", lambda x: sinkhorn_from_features(x, z(5))),
    "sinkhorn_from_features prototypes": ("prototypes", lambda x: sinkhorn_from_features(z(), x)),
    "sinkhorn_from_features queue": ("queue", lambda x: sinkhorn_from_features(z(), z(5), queue=x)),
    "swapped_prediction z": ("z", lambda x: swapped(z=x)),
    "swapped_prediction prototypes": ("prototypes", lambda x: swapped(prototypes=x)),
    "swapped_prediction codes": (r"codes\[1\]", lambda x: swapped(codes=[torch.ones(4, 5), x])),
    "nearest_neighbor z": ("z", lambda x: nearest_neighbor(x, z(9))),
    "nearest_neighbor queue": ("queue", lambda x: nearest_neighbor(z(), x)),
    "Queue.enqueue": ("rows", lambda x: Queue(20, 4).enqueue(x)),
    "byol_loss prediction": ("prediction", lambda x: byol_loss(x, z())),
    "byol_loss target": ("target", lambda x: byol_loss(z(), x)),
}
# What none of them takes, and what is said of it.
NOT_ROWS = {
    "integers": (z().long(), "got torch.int64"),
    "complex": (z().to(torch.complex64), "got torch.complex64"),
    "8 bits": (z().to(torch.float8_e4m3fn), "must have 16 bits or more, got torch.float8_e4m3fn: convert it"),
    "sparse": (z().to_sparse(), r"must be dense, got layout torch.sparse_coo: call .to_dense\(\) on it"),
    "a number": (1.0, "got float"),
    "a vector": (torch.ones(4), r"got (shape )?\(.*4,?\)"),
    "no rows": (z(0), r"got (shape )?\(.*0, 4\)"),
    "no columns": (z(8, 0), r"got (shape )?\(.*8, 0\)"),
    "another width": (z(8, 3), r"3.*got|got.*3"),
    "another device": (z().to("meta"), "meta.*got|got.*meta"),
}
PARTNERS = ("z ", "key ", "queue ", "target ", "prototypes ", "codes ", "crop ", "online and ", "prediction and ")
# One argument is free to choose them; and a queue may be empty where it holds negatives.
FREE = {
    "another width": {"nt_xent z", "sinkhorn scores"},
    "another device": {"nt_xent z", "sinkhorn scores"},
    "no rows": {"nt_xent queue", "info_nce queue"},
}


@pytest.mark.parametrize("wrong", NOT_ROWS)
@pytest.mark.parametrize("argument", ROWS)
def test_rows_that_are_none(argument, wrong):
    name, call = ROWS[argument]
    value, message = NOT_ROWS[wrong]
    if argument in FREE.get(wrong, ()):
        call(value)
        return
    with pytest.raises((ValueError, TypeError), match=message) as error:
        call(value)
    said = str(error.value)
    assert "\n" not in said
    # Of two arguments that do not fit each other, either may be named.
    if wrong in ("another width", "another device", "a vector", "no rows", "no columns"):
        assert said.startswith((name.replace("\\", ""), *PARTNERS))
    else:
        assert said.startswith(name.replace("\\", ""))


NUMBERS: dict[str, tuple[str, Callable[[object], object]]] = {
    "nt_xent": ("temperature", lambda x: nt_xent(z(), temperature=x)),
    "info_nce": ("temperature", lambda x: info_nce(z(), z(), temperature=x)),
    "relic": ("temperature", lambda x: related(temperature=x)),
    "swapped_prediction": ("temperature", lambda x: swapped(temperature=x)),
    "sinkhorn": ("epsilon", lambda x: sinkhorn(z(), epsilon=x)),
    "sinkhorn_from_features": ("epsilon", lambda x: sinkhorn_from_features(z(), z(5), epsilon=x)),
    "NTXentLoss": ("temperature", lambda x: NTXentLoss(x)(z(), z())),
    "NTXentLoss with a bank": ("temperature", lambda x: NTXentLoss(x, (9, 4))(z(), z())),
    "SwaVLoss": ("temperature", lambda x: SwaVLoss(x)([z(), z()], [])),
    "SwaVLoss's codes": ("epsilon", lambda x: SwaVLoss(sinkhorn_epsilon=x)([z(), z()], [])),
}


@pytest.mark.parametrize("value", [0, -0.1, math.nan, math.inf, -math.inf, None, "0.1"])
@pytest.mark.parametrize("function", NUMBERS)
def test_temperatures_that_are_none(function, value):
    name, call = NUMBERS[function]
    with pytest.raises(ValueError, match=f"^{name} must be finite and > 0, got {value!r}$"):
        call(value)


@pytest.mark.parametrize("function", NUMBERS)
def test_a_temperature_on_a_device_is_not_read(function):
    name, call = NUMBERS[function]
    message = rf"^{name} must be a Python number, got a tensor: call .item\(\) on it once, outside the step$"
    with pytest.raises(ValueError, match=message):
        call(torch.tensor(0.1, device="meta"))


def parameters():
    return torch.nn.Linear(2, 2).parameters()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nt_xent(z(), temperature=0.1, views=2.0), "views must be an integer of at least 2, got 2.0"),
        (lambda: nt_xent(z(9), temperature=0.1), "z has 9 rows, which is not a multiple of views=2"),
        (lambda: related(alpha=None), "alpha must be finite and >= 0, got None"),
        (lambda: related(views=(True, 0)), "views must be two integers (large, small), got (True, 0)"),
        (lambda: related(negatives=[1]), "negatives must be an int64 tensor [n] of images, got list"),
        (lambda: sinkhorn(z(), iterations=True), "iterations must be an integer of at least 1, got True"),
        (lambda: swapped(codes=None), "codes must be a tensor or a sequence of tensors, got NoneType"),
        (lambda: swapped(z=None), "z must be a tensor or a sequence of tensors, got NoneType"),
        (lambda: swapped(assign=None), "assign must be a sequence of integers, got NoneType"),
        (lambda: swapped(assign="ab"), "assign must name different crops from 0 to 1, got ['a', 'b']"),
        (lambda: nearest_neighbor(z(), z(9), 10), "k must be an integer from 1 to the 9 rows of the queue, got 10"),
        (lambda: Queue(7, 4).enqueue(z()), "rows must fit the queue: 8 rows of all ranks for a queue of 7"),
        (lambda: Queue(7, 4, seed="a"), "seed must be an integer or a CPU generator, got str"),
        (lambda: sample_negatives(8.5, 2, seed=0, step=0), "images must be an integer of at least 1, got 8.5"),
        (lambda: sample_negatives(8, 9, seed=0, step=0), "count must be from 1 to images=8, got 9"),
        (lambda: sample_negatives(8, 2, seed=None, step=0), "seed must be an integer, got None"),
        (lambda: sample_negatives(8, 2, seed=0, step=0.5), "step must be an integer, got 0.5"),
        (
            lambda: sample_negatives(8, 2, seed=0, step=torch.tensor([1, 2])),
            "step must be an integer or a zero-dimensional integer tensor, got torch.int64 (2,)",
        ),
        (lambda: ema_update_([z()], [z()], "a"), "momentum must be in [0, 1], got 'a'"),
        (lambda: ema_update_([z()], [z()], math.nan), "momentum must be in [0, 1], got nan"),
        (lambda: ema_update_([z()], [z()], torch.tensor(1.5)), "momentum must be in [0, 1], got 1.5"),
        (
            lambda: ema_update_([z()], [z()], torch.tensor(2)),
            "momentum must be a number or a zero-dimensional tensor of floating dtype, got torch.int64 ()",
        ),
        (lambda: ema_update_([1.0], [z()], 0.5), "target[0] must be a tensor, got float"),
        (lambda: ema_update_([z(), z()], [z(), None], 0.5), "online[1] must be a tensor, got NoneType"),
        (lambda: LARS(parameters(), None), "lr must be ≥ 0, got None"),
        (lambda: LARS(parameters(), math.nan), "lr must be ≥ 0, got nan"),
        (lambda: LARS(parameters(), 0.1, eta="x"), "eta must be > 0, got 'x'"),
        (lambda: LARS(parameters(), 0.1, ema_momentum=2.0), "ema_momentum must be in [0, 1], got 2.0"),
        (lambda: LARS(parameters(), 0.1, ema=5), "ema needs two equally long lists, got int"),
        (lambda: exclude_from_adaptation([1]), "module must be a torch.nn.Module, got list"),
        (lambda: byol_loss(z(), z(8, 3)), "prediction and target must have one shape [B, D], got (8, 4) and (8, 3)"),
        (lambda: render_views(None, ONE, 8), "images must be a tensor or a sequence of tensors, got NoneType"),
        (lambda: render_views([1], ONE, 8), "images[0] must be a uint8 tensor, got int"),
        (lambda: render_views(IMAGE, ONE, 8.5), "size must be an integer of at least 8, got 8.5"),
        (lambda: render_views(IMAGE, ONE, 7), "size must be an integer of at least 8, got 7"),
        (
            lambda: render_views(IMAGE, None, 8),
            "parameters must be a float32 tensor from view_parameters, got NoneType",
        ),
        (lambda: NTXentLoss(0.1)(z(), z(6)), "out1 must have the shape of out0, (8, 4), got (6, 4)"),
        (
            lambda: SwaVLoss()([z(), z()], [], [z()]),
            "queue_outputs must hold scores for each of the 2 high-resolution crops, got 1",
        ),
    ],
)
def test_the_sentence(call, message):
    with pytest.raises((ValueError, TypeError)) as error:
        call()
    assert str(error.value) == message


def test_every_public_function_is_in_a_table():
    text = Path(__file__).read_text()
    results = {"Metrics", "Neighbors", "RelicMetrics"}
    elsewhere = {"view_parameters", "study_parameters"}  # test_augment
    for name in set(fastssl_kernels.__all__) - results - elsewhere:
        assert f"{name}(" in text or f", {name})" in text, name


@pytest.mark.parametrize("shift", [0, 1])
def test_cuda_tensors_beside_cpu_tensors(shift):
    """Of tensors that only claim to be on a GPU, shapes go through and devices are compared."""
    with FakeTensorMode():
        gpu, cpu = torch.empty(8, 4, device="cuda"), torch.empty(8, 4)
        first, second = (gpu, cpu) if shift else (cpu, gpu)
        for call in (
            lambda: nt_xent(first, queue=second, temperature=0.1),
            lambda: info_nce(first, second, temperature=0.1),
            lambda: info_nce(first, first, queue=second, temperature=0.1),
            lambda: related(online=first, target=second),
            lambda: sinkhorn(first, queue=second),
            lambda: sinkhorn_from_features(first, second),
            lambda: swapped(z=first, codes=torch.empty(2, 4, 5, device=second.device)),
            lambda: swapped(z=first, prototypes=second, codes=torch.empty(2, 4, 5, device=first.device)),
            lambda: nearest_neighbor(first, second),
            lambda: byol_loss(first, second),
            lambda: ema_update_([first], [second], 0.5),
        ):
            with pytest.raises(ValueError, match="must be on") as error:
                call()
            assert "cuda:0" in str(error.value)
            assert "cpu" in str(error.value)


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_unaligned_and_strided_rows_are_taken(offset):
    """Views that begin at any byte, or skip numbers, give what their copies give."""
    store = torch.randn(8 * 9 + 3, generator=torch.Generator().manual_seed(0))
    view = store[offset : offset + 72].view(8, 9)[:, 2:8:1]
    queue = Queue(20, 6)
    for call in (
        lambda x: nt_xent(x, temperature=0.1),
        lambda x: info_nce(x, x.flip(0), queue=x, temperature=0.1),
        lambda x: related(online=x, target=x),
        lambda x: sinkhorn(x),
        lambda x: sinkhorn_from_features(x, x),
        lambda x: swapped(z=x, prototypes=x[:5]),
        lambda x: nearest_neighbor(x, queue).similarity,
        lambda x: byol_loss(x, x.flip(0)),
    ):
        torch.testing.assert_close(call(view), call(view.clone()))
