"""How well the site of a slide can be told from features: a linear probe on slides held out by patient.

The features of a site's slides differ by how the site stains and scans. A probe that tells the sites apart on slides
that it has not seen (AUC well above 0.5) shows that a model may take that difference for a sign of disease.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from histotl.core.intervals import Resamples
from histotl.evaluate.metrics import Floats, Ints
from histotl.evaluate.ranking import Mask, auroc_macro

LEAST_GROUPS = 3
"""Patients (or slides) that a site needs to be in the probe: two to learn from and one to be held out."""

FOLDS = 5
"""Most parts of the cross-validation; fewer where a site has fewer patients."""

STRENGTHS = (0.01, 0.1, 1.0, 10.0)
"""Inverse weights of the penalty (scikit-learn's C) that are tried, on standardised features."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Which slides are in the probe, and when each is held out. s slides of the set.

    Args:
        names: The sites, in order.
        site: Index of each slide's site (s,); -1 for slides that are left out.
        fold: In which each slide is held out (s,); -1 likewise.
        notes: What was left out, and why.
        reason: Why there can be no probe; empty when there can.
    """

    names: tuple[str, ...]
    site: Ints
    fold: Ints
    notes: tuple[str, ...] = ()
    reason: str = ""


def plan_folds(sites: Sequence[str], groups: Sequence[str], *, unit_name: str, seed: int) -> Plan:
    """Deal patients out to folds, those of every site evenly; all slides of a patient are in one fold.

    Args:
        sites: Site of each slide, empty when unknown (s,).
        groups: What is held out together, the patient or the slide itself (s,).
        unit_name: What a group is called, ``patient`` or ``slide``.
        seed: Of the order in which they are dealt.
    """
    known = [(group, site) for site, group in zip(sites, groups, strict=True) if site]
    counts = Counter(_main_sites(known).values())
    names = tuple(sorted(site for site, count in counts.items() if count >= LEAST_GROUPS))
    few = sorted({site for _, site in known} - set(names))
    notes = [f"site {site!r} has {counts[site]} {unit_name}{'s'[: counts[site] != 1]}" for site in few]
    if notes:
        notes = [f"{', '.join(notes)}: left out of the site probe, which needs {LEAST_GROUPS} of each site"]
    unknown = len(sites) - len(known)
    if unknown:
        notes.append(f"{unknown} of {len(sites)} slides have no site in the table: left out of the site probe")
    nothing = np.full(len(sites), -1, dtype=np.int64)
    if len(names) < 2:
        seen = f"{len(names)} site{'s'[: len(names) != 1]} of {LEAST_GROUPS} {unit_name}s or more"
        reason = f"Not measured: there {'is' if len(names) == 1 else 'are'} {seen}, and it takes 2 to tell apart."
        return Plan(names=names, site=nothing, fold=nothing, notes=tuple(notes), reason=reason)
    site = np.array([names.index(name) if name in names else -1 for name in sites], dtype=np.int64)
    fold_of = _deal([(group, site) for group, site in known if site in names], seed)
    fold = np.array([fold_of[g] if s >= 0 else -1 for s, g in zip(site, groups, strict=True)], dtype=np.int64)
    return Plan(names=names, site=site, fold=fold, notes=tuple(notes))


def held_out_scores(features: Floats, site: Ints, fold: Ints) -> Floats:
    """Probability of each site for every row, by a probe that saw no row of its fold.

    A logistic regression on standardised features.

    Args:
        features: (n, d).
        site: Index of each row's site, 0 to k - 1 (n,).
        fold: Of each row (n,); three or more, each site in all of them.

    Returns:
        (n, k); 0 for a site that the probe of a fold never saw.
    """
    parts, k = np.unique(fold), int(site.max()) + 1
    scores = np.zeros((len(site), k))
    for place, part in enumerate(parts):
        # The penalty is chosen on a part of what the probe learns from; what is held out has no say in it.
        inner = parts[(place + 1) % len(parts)]
        learn, choose = (fold != part) & (fold != inner), fold == inner
        tried = [_answers(features, site, learn, choose, strength, k) for strength in STRENGTHS]
        found = [float(auroc_macro(answers, site[choose])) for answers in tried]
        best = STRENGTHS[int(np.argmax(found))]  # the strongest penalty of those that are equally good
        scores[fold == part] = _answers(features, site, fold != part, fold == part, best, k)
    return scores


def _answers(features: Floats, site: Ints, train: Mask, held: Mask, strength: float, k: int) -> Floats:
    """Probability of each of k sites for the held-out rows."""
    mean, std = features[train].mean(axis=0), features[train].std(axis=0)
    # A feature that is constant but for rounding would be rounding, blown up.
    scale = np.where(std > 1e-6 * np.maximum(np.abs(mean), 1e-6), std, np.inf)
    # Balanced: else the probe of a fold leans to the sites that it lacks in the held-out part, and the AUC over
    # all folds comes out below 0.5 where nothing can be told.
    probe = LogisticRegression(C=strength, class_weight="balanced", max_iter=5000)
    # Thousands of small products: threads that wait for each other make them several times slower on a busy machine.
    with threadpool_limits(1, user_api="blas"):
        probe.fit((features[train] - mean) / scale, site[train])
    scores = np.zeros((int(held.sum()), k))
    scores[:, probe.classes_] = probe.predict_proba((features[held] - mean) / scale)
    return scores


def site_auc(scores: Floats, site: Ints, resamples: Resamples) -> Floats:
    """Macro one-versus-rest AUC over tiles for all draws (1 + b,); 0.5: the site cannot be told."""
    return resamples.rows(lambda weights: auroc_macro(scores, site, weights))


def _main_sites(slides: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The site of each group: of one with slides of several sites, that of most of them."""
    counts: dict[str, Counter[str]] = {}
    for group, site in slides:
        counts.setdefault(group, Counter())[site] += 1
    return {group: min(found, key=lambda site: (-found[site], site)) for group, found in counts.items()}


def _deal(slides: Sequence[tuple[str, str]], seed: int) -> dict[str, int]:
    """Group -> fold, the groups of every site spread over all folds."""
    members: dict[str, list[str]] = {}
    for group, site in sorted(_main_sites(slides).items()):
        members.setdefault(site, []).append(group)
    n_folds = min(FOLDS, *map(len, members.values()))
    rng = np.random.default_rng(seed)
    return {
        group: place % n_folds
        for _, found in sorted(members.items())
        for place, group in enumerate(rng.permutation(np.array(found, dtype=object)).tolist())
    }
