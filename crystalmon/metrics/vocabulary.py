"""Observables over the whole vocabulary at the answer position.

Axes: B rows, V vocabulary. `log_p` is log π_now, `log_b` log π_base; both are normalised
log-probabilities. Only quantities that stay the same when a constant is added to all logits are
computed: F = −T ln Z and the energies are not among them. Entropies and divergences are in nats.
The names are the essay's; the quantities are entropies, variances and KL divergences. `README.md`
beside this file has every definition and its source.
"""

from __future__ import annotations

import torch
from torch import Tensor


def shannon_entropy(log_p: Tensor) -> Tensor:
    """S = −Σ_v p_v log p_v over the last axis, in nats: the essay's compliance entropy.

    >>> round(shannon_entropy(torch.tensor([0.5, 0.5]).log()).item(), 4)
    0.6931
    """
    return -torch.linalg.vecdot(log_p.exp(), _finite(log_p))


def heat_capacity(log_p: Tensor) -> Tensor:
    """C = Var_p(z) = Σ p z² − (Σ p z)² of the logits z at temperature T = 1, over the last axis.

    log p differs from z by a constant, so its variance is the same. Computed around the mean.
    Equals T · dS/dT at T = 1. For U = −⟨z⟩ it is dU/dT; the essay's U = −⟨z⟩/T does not give its
    own C.

    >>> round(heat_capacity(torch.tensor([0.9, 0.1]).log()).item(), 4)  # p (1 − p) log²(p/(1 − p))
    0.4345
    """
    p, z = log_p.exp(), _finite(log_p)
    centred = z - torch.linalg.vecdot(p, z).unsqueeze(-1)
    return torch.linalg.vecdot(p, centred.square())


def kl_divergence(log_p: Tensor, log_b: Tensor) -> Tensor:
    """KL(P ‖ B) = Σ_v [p (log p − log b) − p + b] over the last axis, in nats.

    Each term is at least 0, so the sum is never negative, is exactly 0 on identical inputs and
    stays accurate when the two are near. Both inputs must be normalised. Infinite where b is 0
    and p is not.

    >>> p, b = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    >>> round(kl_divergence(p, b).item(), 4), kl_divergence(p, p).item()
    (0.1438, 0.0)
    """
    return _kl_terms(log_p, log_b).sum(dim=-1)


def free_energy_parts(log_p: Tensor, log_b: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
    """Alignment free energy KL(P ‖ B), split by the chain rule into choice and format.

    With A the tokens that begin a choice, P(A) = Σ_{v∈A} p_v:

        KL(P‖B) = P(A) · KL(P(·|A) ‖ B(·|A))                             [choice]
                + kl(P(A) ‖ B(A)) + P(Ā) · KL(P(·|Ā) ‖ B(·|Ā))           [format]

    where kl is the divergence of the two-way split. In the terms k(p, b) = p log(p/b) − p + b ≥ 0
    of the divergence, which one pass over the vocabulary gives, that is

        choice = Σ_{v∈A} k(p_v, b_v · P(A) / B(A))
        format = Σ_{v∉A} k(p_v, b_v) + k(P(A), B(A))

    Source: Cover & Thomas, Elements of Information Theory, theorem 2.5.3.

    Args:
        log_p: [B, V].
        log_b: [B, V].
        begins: [B, V] bool, the tokens of A.

    Returns:
        (choice, format), each [B] and at least 0; their sum is KL(P ‖ B).

    >>> p, b = torch.tensor([[0.4, 0.4, 0.2]]).log(), torch.tensor([[0.2, 0.6, 0.2]]).log()
    >>> choice, rest = free_energy_parts(p, b, torch.tensor([[True, True, False]]))
    >>> round((choice + rest).item(), 4) == round(kl_divergence(p, b).item(), 4)
    True
    """
    log_mass_p, log_mass_b = _log_mass(log_p, begins), _log_mass(log_b, begins)
    raised = torch.where(log_mass_b == -torch.inf, 0.0, log_mass_p - log_mass_b).unsqueeze(-1)
    terms = _kl_terms(log_p, torch.where(begins, log_b + raised, log_b))
    choice = torch.where(begins, terms, 0.0).sum(dim=-1)
    outside = torch.where(begins, 0.0, terms).sum(dim=-1)
    return choice, outside + _kl_terms(log_mass_p, log_mass_b)


def own_observables(log_p: Tensor) -> dict[str, Tensor]:
    """Of `vocabulary_observables`, those that need no base.

    Args:
        log_p: [B, V].

    Returns:
        [B] values by metric key, in nats and nats².
    """
    return {
        "compliance_entropy": shannon_entropy(log_p),
        "heat_capacity": heat_capacity(log_p),
    }


def vocabulary_observables(log_p: Tensor, log_b: Tensor, begins: Tensor) -> dict[str, Tensor]:
    """Every metric of the vocabulary, per row.

    Vocabularies of different size (tokens added since the base) are compared on the shared
    leading part, renormalised; `vocabulary_outside` is the current mass beyond it. The parts of the
    free energy are NaN where all of the mass is beyond it.

    Args:
        log_p: [B, V] now.
        log_b: [B, V_b] in the base.
        begins: [B, V] bool, tokens that begin a choice.

    Returns:
        [B] values by metric key.
    """
    shared = min(log_p.shape[-1], log_b.shape[-1])
    own = own_observables(log_p)
    outside = 0.0 * own["compliance_entropy"]  # NaN stays NaN
    shared_p, shared_b = log_p[..., :shared], log_b[..., :shared]
    if shared < log_p.shape[-1]:
        outside = log_p[..., shared:].exp().sum(dim=-1)
        shared_p = shared_p.log_softmax(dim=-1)
    if shared < log_b.shape[-1]:
        shared_b = shared_b.log_softmax(dim=-1)
    choice, formatting = free_energy_parts(shared_p, shared_b, begins[..., :shared])
    return {
        "free_energy": choice + formatting,
        "free_energy_choice": choice,
        "free_energy_format": formatting,
        **own,
        "vocabulary_outside": outside,
    }


def _kl_terms(log_p: Tensor, log_b: Tensor) -> Tensor:
    """p (log p − log b) − p + b = p (expm1(r) − r) with r = log b − log p; b where p = 0.

    The second form is for r near 0, where the first cancels; far from 0 it would overflow.
    """
    p, b, r = log_p.exp(), log_b.exp(), log_b - log_p
    terms = torch.where(r < 1.0, p * (torch.expm1(r) - r), b - p - p * r)
    return torch.where(p == 0, b, terms).clamp(min=0.0)


def _finite(log_p: Tensor) -> Tensor:
    """log p where p > 0, and otherwise finite, so that 0 · log 0 = 0."""
    return log_p.clamp(min=-1e4)  # its exponential is 0 in float32 and in float64


def _log_mass(log_p: Tensor, inside: Tensor) -> Tensor:
    """log Σ_{v∈A} p_v over the last axis; −inf where A holds nothing."""
    return log_p.masked_fill(~inside, -torch.inf).logsumexp(dim=-1)
