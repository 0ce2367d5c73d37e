"""Layer-wise adaptive rate scaling in plain torch: the definition of correct for any dtype.

With u = g + λw (weight decay λ), trust coefficient η, momentum μ and learning rate γ, for each tensor on its own:

    A   ρ = η‖w‖ / ‖u‖                        v ← μv + γρu     w ← w − v        (SimCLR)
    B   ρ = η‖w‖ / ‖u‖                        v ← μv + ρu      w ← w − γv       (BYOL, MoCo v3, NNCLR)
    C   ρ = η‖w‖ / (‖g‖ + λ‖w‖ + 1e-8)        v ← μv + ρu      w ← w − γv       (SwAV: LARC over torch SGD)

Where ‖w‖ or the denominator's norm (‖u‖, in C ‖g‖) is 0, ρ = 1; variant C then drops the weight decay too. A and B are
the same while γ is constant and part ways when it changes, because in A the momentum remembers the γ of earlier steps.
With Nesterov momentum the last step uses μv + (the term just added to v) in place of v.
Source: LARS, arXiv 1708.03888, eq. 6, and the official implementations of the methods named above.
"""

from __future__ import annotations

from torch import Tensor
from torch.linalg import vector_norm

VARIANTS = ("A", "B", "C")
LARC_EPSILON = 1e-8


def lars_reference(
    weight: Tensor,
    gradient: Tensor,
    momentum_buffer: Tensor,
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    eta: float = 0.001,
    variant: str = "A",
    nesterov: bool = False,
    adapt: bool = True,
) -> tuple[Tensor, Tensor]:
    """One step of one tensor: `(new weight, new momentum_buffer)`, nothing in place.

    All tensors have one shape and dtype. `adapt=False` sets ρ = 1 and keeps the weight decay.
    """
    ratio = weight.new_ones(())
    decayed = gradient + weight_decay * weight
    if adapt:
        weight_norm = vector_norm(weight)
        gradient_norm = vector_norm(gradient if variant == "C" else decayed)
        if weight_norm > 0 and gradient_norm > 0:
            if variant == "C":
                ratio = eta * weight_norm / (gradient_norm + weight_decay * weight_norm + LARC_EPSILON)
            else:
                ratio = eta * weight_norm / gradient_norm
        elif variant == "C":
            decayed = gradient
    added = ratio * decayed * (lr if variant == "A" else 1.0)
    velocity = momentum * momentum_buffer + added
    direction = momentum * velocity + added if nesterov else velocity
    return weight - direction * (1.0 if variant == "A" else lr), velocity
