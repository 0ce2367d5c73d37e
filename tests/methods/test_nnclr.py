"""NNCLR against its equations: the look-up before the queue moves, the gradient through predictions only."""

from __future__ import annotations

import copy

import pytest
import torch
from three_steps import WIDTH, Tiny, descend, random_views, run_beside, same_after_saving, trained, unit

from fastssl.errors import UserError
from fastssl.methods import StepState
from fastssl.methods.nnclr import NNCLR, NNCLRConfig

torch.set_num_threads(1)
CONFIG = NNCLRConfig(temperature=0.3, hidden=16, out=6, predictor_hidden=10, queue=20)


def make() -> NNCLR:
    method = NNCLR(CONFIG, Tiny(), WIDTH)
    method.queue.rows = unit(method.queue.rows.float())  # not rounded to bf16
    return method


@pytest.mark.parametrize("counts", [(2,), (2, 2)])
def test_three_steps(counts):
    torch.manual_seed(0)
    method = make()
    r = copy.deepcopy(method).double()

    def step(number, views):
        sizes = [v.shape[-1] for v in views]
        together = [torch.cat([v for v in views if v.shape[-1] == size]) for size in dict.fromkeys(sizes)]
        z = r.projector(torch.cat([r.backbone(x) for x in together]))
        p = [unit(part) for part in r.predictor(z).split(8)]
        z = [unit(part).detach() for part in z.split(8)]
        losses = []
        for i in range(2):
            nearest = r.queue.rows[(z[i] @ r.queue.rows.T).argmax(1)]
            for j in range(len(views)):
                if i != j:
                    logits = nearest @ p[j].T / 0.3
                    losses.append((torch.logsumexp(logits, 1) - logits.diagonal()).mean())
        loss = sum(losses) / len(losses)
        descend(loss, trained(r))
        for row in z[0]:
            place = int(r.queue.pointer)
            r.queue.rows[place] = row
            r.queue.pointer.fill_((place + 1) % 20)
            r.queue.filled.fill_(min(int(r.queue.filled) + 1, 20))
        return loss

    run_beside(method, step, r, counts=counts)


def test_no_row_finds_itself():
    torch.manual_seed(0)
    method = make()
    before = method.queue.rows.clone()
    metrics = method.loss(random_views(0), StepState(0, 10, 4)).metrics
    assert metrics["neighbor_cosine"] < 0.999
    assert torch.equal(method.queue.rows, before)
    method.after_step(StepState(0, 10, 4))
    assert method.queue.pointer == 8


def test_heads_have_the_norms_that_other_code_agrees_on():
    method = NNCLR(NNCLRConfig(queue=8), Tiny(), 2048)
    kinds = [type(m).__name__ for m in method.projector]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert method.projector[-1].bias.requires_grad
    assert [type(m).__name__ for m in method.predictor] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert method.predictor[-1].bias is not None
    assert [tuple(m.weight.shape) for m in method.predictor if isinstance(m, torch.nn.Linear)] == [
        (4096, 256),
        (256, 4096),
    ]


def test_saved_and_loaded():
    same_after_saving(make)


@pytest.mark.parametrize(
    ("config", "counts", "batch", "word"),
    [
        (NNCLRConfig(temperature=-1), (2,), 4, "temperature"),
        (NNCLRConfig(predictor_hidden=0), (2,), 4, "predictor-hidden"),
        (NNCLRConfig(), (1,), 4, "two views"),
        (NNCLRConfig(queue=3), (2,), 4, "queue 3 must hold a batch of 4"),
    ],
)
def test_impossible_constants(config, counts, batch, word):
    def validate():
        config.validate(counts)
        config.validate_batch(batch)

    with pytest.raises(UserError, match=word):
        validate()
