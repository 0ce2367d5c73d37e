"""RELIC's loss written as its definition: every logit in memory, any dtype, differentiable.

RELIC (Mitrovic et al. 2021, arXiv 2010.07922) and RELICv2 (Tomasev et al. 2022, arXiv 2201.05119). With unit rows o
(online network) and t (target network, no gradient), image b of view i predicts which image of view j is its own:

    p_ij(b) = softmax over n in {b} and N(b) of o_ib · t_jn / τ

    loss = mean over pairs (i, j) and images b of  −log p_ij(b)[b] + α KL(p_ij(b) ‖ q_ij(b))

N(b) are the other images of the batch, or those of a sample that is drawn once. q_ij is the prediction of the same
image after an intervention on its views. For two large crops it is the prediction with views exchanged, q_ij = p_ji. A
small crop passes through the online network only, so that nobody predicts it; there q_sj = p_jj replaces the small crop
by the large one. A large crop paired with itself has no invariance term.

The stop-gradient of the divergence is one of

    "second"   KL(p ‖ sg[q])
    "first"    KL(sg[p] ‖ q)
    "entropy"  sg[E_p log p] − E_p log q: through p and q, but not through the entropy of p
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..nt_xent.reference import TIE
from ..rows import unit_rows

StopGradient = Literal["second", "first", "entropy"]


class RelicMetrics(NamedTuple):
    """The two terms and the task from the inside: means over pairs and images, detached scalars, fp32.

    contrastive: −log p_ij(b)[b], in nats. invariance: the divergence, before its weight α; 0 where α is 0.
    accuracy: share of predictions whose own image is closer than every other (a tie counts as a miss), 0 to 1.
    entropy: of the prediction p_ij(b), in nats.
    """

    contrastive: Tensor
    invariance: Tensor
    accuracy: Tensor
    entropy: Tensor


def relic_reference(
    online: Tensor,
    target: Tensor,
    *,
    views: tuple[int, int],
    temperature: float,
    alpha: float,
    negatives: Tensor | None = None,
    self_pairs: bool = True,
    stop_gradient: StopGradient = "second",
    return_metrics: bool = False,
) -> Tensor | tuple[Tensor, RelicMetrics]:
    """The loss above on `online` [(L + S)·B, D] and `target` [L·B, D], view-major, in their dtype; see `relic`."""
    large, small = views
    batch = len(target) // large
    o = unit_rows(online)[0].view(large + small, batch, -1)
    t = unit_rows(target.detach())[0].view(large, batch, -1)
    images = torch.arange(batch, device=online.device)
    chosen = images if negatives is None else negatives
    positive = torch.einsum("ibd,jbd->ijb", o, t) / temperature
    logits = torch.einsum("ibd,jnd->ijbn", o, t[:, chosen]) / temperature
    logits = logits.masked_fill(images[:, None] == chosen, -torch.inf)
    log_p = torch.cat([positive[..., None], logits], 3).log_softmax(3)

    terms, divergences = [], []
    for i in range(large + small):
        for j in range(large):
            if i == j and not self_pairs:
                continue
            terms.append(log_p[i, j])
            log_q = log_p[j, i] if i < large else log_p[j, j]
            divergence = _divergence(log_p[i, j], log_q, stop_gradient)
            divergences.append(divergence if i != j else torch.zeros_like(divergence))
    log_p = torch.stack(terms)
    contrastive, invariance = -log_p[..., 0].mean(), torch.stack(divergences).mean()
    loss = contrastive + alpha * invariance if alpha else contrastive
    if not return_metrics:
        return loss
    best_negative = log_p[..., 1:].amax(2) if log_p.shape[2] > 1 else torch.full_like(log_p[..., 0], -torch.inf)
    accuracy = (log_p[..., 0] > best_negative + TIE / temperature).to(loss.dtype).mean()
    entropy = -(log_p.exp() * _finite(log_p)).sum(2).mean()
    shown = invariance if alpha else torch.zeros_like(invariance)
    return loss, RelicMetrics(*(value.detach() for value in (contrastive, shown, accuracy, entropy)))


def _divergence(log_p: Tensor, log_q: Tensor, stop_gradient: StopGradient) -> Tensor:
    """KL(p ‖ q) [B]; its gradient as `stop_gradient` says."""
    log_p, log_q = _finite(log_p), _finite(log_q)
    if stop_gradient == "second":
        log_q = log_q.detach()
    elif stop_gradient == "first":
        log_p = log_p.detach()
    p = log_p.exp()
    own = (p * log_p).sum(1)
    return (own.detach() if stop_gradient == "entropy" else own) - (p * log_q).sum(1)


# Takes the place of −∞ where it is multiplied by a probability of 0.
EXCLUDED = -1e30


def _finite(log_p: Tensor) -> Tensor:
    return log_p.masked_fill(log_p == -torch.inf, EXCLUDED)


def relic_gradient_reference(
    online: Tensor,
    target: Tensor,
    *,
    views: tuple[int, int],
    temperature: float,
    alpha: float,
    negatives: Tensor | None = None,
    self_pairs: bool = True,
    stop_gradient: StopGradient = "second",
) -> Tensor:
    """The gradient of `relic_reference` by `online` in closed form, which is what both back ends compute.

    With s, s' the logits of a prediction and of its counterpart, τ times the derivative by s is

        G = (p − e_b) + p (α_log (s − E_p[s]) − α_expectation (s' − E_p[s'])) + α_second Σ (p − p_r)

    over the predictions p_r whose counterpart p is. The three weights are α or 0: log and expectation for "second",
    second for "first", expectation and second for "entropy". Then dz = Σ G column / τ and dx = (dz − z (z·dz)) / ‖x‖.
    """
    large, small = views
    batch = len(target) // large
    (z, factor), t = unit_rows(online), unit_rows(target)[0].view(large, batch, -1)
    o = z.view(large + small, batch, -1)
    images = torch.arange(batch, device=online.device)
    chosen = images if negatives is None else negatives
    candidates = torch.cat([t[:, :, None], t[:, None, chosen].expand(-1, batch, -1, -1)], 2)
    skipped = torch.cat([images[:, None] < 0, images[:, None] == chosen], 1)
    s = torch.einsum("ibd,jbnd->ijbn", o, candidates) / temperature
    p = s.masked_fill(skipped, -torch.inf).softmax(3)

    log = alpha if stop_gradient == "second" else 0.0
    expectation = alpha if stop_gradient != "first" else 0.0
    second = alpha if stop_gradient != "second" else 0.0
    weights = torch.zeros_like(p)
    for i in range(large + small):
        for j in range(large):
            if i != j or self_pairs:
                weights[i, j] += p[i, j]
                weights[i, j, :, 0] -= 1
            if i == j:
                continue
            a, b = (i, j), (j, i) if i < large else (j, j)
            own, other = (s[x] - (p[a] * s[x]).sum(1, keepdim=True) for x in (a, b))
            weights[a] += p[a] * (log * own - expectation * other)
            weights[b] += second * (p[b] - p[a])
    count = (large + small) * large - (0 if self_pairs else large)
    gradient = torch.einsum("ijbn,jbnd->ibd", weights, candidates).flatten(0, 1) / (count * batch * temperature)
    return (gradient - z * (z * gradient).sum(1, keepdim=True)) * factor[:, None]
