"""Weights of a merge chosen by the loss on held-out images: the cure for what later stages forgot of earlier ones."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launch.config import RunConfig
from tools.merge.candidates import Candidates, Weights, rounded
from tools.merge.choice import Choice

# How far the first steps of the search go from where it starts, as a share, and how fine the last ones are.
FIRST_STEP, LAST_STEP = 0.2, 0.01
BUDGET = 40

Tell = Callable[[str], None]


def greedy_soup(config: RunConfig, sources: Sequence[str] = (), tell: Tell = print) -> Choice:
    """Return the plain mean of those models that each make it better, tried from the best one on.

    sources: models to choose from beside the finished stages of the run. tell: is given a line for each step.
    Source: Wortsman et al. 2022 (arXiv:2203.05482), algorithm 1, with the loss on the validation split.
    """
    candidates = Candidates.open(config, sources)
    return Choice("greedy soup", candidates, _greedy(candidates, tell))


def search(config: RunConfig, sources: Sequence[str] = (), budget: int = BUDGET, tell: Tell = print) -> Choice:
    """Return the weights with the lowest loss that so many more evaluations find, from the greedy or the uniform soup.

    Source of the method: Powell 1994, COBYLA (doi:10.1007/978-94-015-8330-5_4): no gradients, shares at least 0 that
    sum to one.
    """
    from scipy.optimize import LinearConstraint, minimize

    candidates = Candidates.open(config, sources)
    num_free = len(candidates.names) - 1
    uniform = rounded([1.0] * (num_free + 1))
    start = min((_greedy(candidates, tell), uniform), key=candidates.score)
    tell(f"search: from {_shown(candidates, start)}")
    best = {start: candidates.score(start)}

    def score(free: NDArray[np.float64], *_: Any) -> float:
        weights = np.append(free, 1 - free.sum()).clip(min=0)  # its steps may leave the simplex a little
        tried = rounded(weights.tolist())
        best[tried] = candidates.score(tried)
        return best[tried]

    # All shares but the last, which is what is left.
    within = LinearConstraint(np.vstack([np.eye(num_free), np.ones(num_free)]), 0, 1)
    minimize(
        score,
        np.array(start[:-1]),
        method="COBYLA",
        tol=LAST_STEP,
        constraints=[within],
        options={"rhobeg": FIRST_STEP, "maxiter": budget},
    )
    weights = min(best, key=lambda tried: best[tried])
    tell(f"search: {_shown(candidates, weights)}")
    return Choice("search", candidates, weights)


def _greedy(candidates: Candidates, tell: Tell) -> Weights:
    ordered = sorted(candidates.names, key=lambda name: candidates.score(candidates.single(name)))
    chosen = [ordered[0]]
    best = _uniform(candidates, chosen)
    tell(f"greedy soup: {_shown(candidates, best)}")
    for name in ordered[1:]:
        tried = _uniform(candidates, [*chosen, name])
        if candidates.score(tried) <= candidates.score(best):
            chosen, best = [*chosen, name], tried
            tell(f"greedy soup: with {name} {_shown(candidates, best)}")
        else:
            tell(f"greedy soup: not {name}, with which it would be {candidates.score(tried):.4f}")
    return best


def _uniform(candidates: Candidates, names: Sequence[str]) -> Weights:
    return rounded([float(name in names) for name in candidates.names])


def _shown(candidates: Candidates, weights: Weights) -> str:
    shares = [f"{weight:g} {name}" for name, weight in zip(candidates.names, weights, strict=True) if weight > 0]
    return f"{' + '.join(shares)}: {candidates.score(weights):.4f}"
