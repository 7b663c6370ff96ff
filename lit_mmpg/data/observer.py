"""The room for adaptation in PersonalClips, computed: ideal observers of the generative model, no learning.

Every observer perceives clips without error and is asked the open-ended questions of one clip. They differ in what
they know of the device: everything (``knows``), nothing but this clip (``blind``), or C of its earlier clips as well,
without labels (``history_C``). The last two answer by the exact posterior over the device's latents.

The posterior is exact although it enumerates only two latents, the owner's colour and the usual room: a device's
mixtures over shapes and directions, its camera, its rooms' looks and its daylight are drawn independently of these two,
so their likelihood is a factor that does not depend on them and cancels. The two are independent of each other and each
governs one attribute of the clips, so the joint posterior is the product of two that are enumerated apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lit_mmpg.data.personal_clips import COLOURS, OPEN_TYPES, ROOMS, PersonalClipsConfig, draw_latents
from lit_mmpg.errors import UserError


def favourite_posterior(seen: np.ndarray, values: int, share: float) -> np.ndarray:
    """Posterior over a device's favourite value.

    The model: the favourite is uniform over the values; each clip shows it with probability ``share``, and otherwise
    one of the others, evenly.

    Args:
        seen: ``[S, N]`` integer, the values that N clips show, for S devices; N may be 0.
        values: Number of values V.
        share: Probability of the favourite in one clip, between 0 and 1.

    Returns:
        ``[S, V]`` probabilities.
    """
    counts = (seen[:, :, None] == np.arange(values)).sum(1)
    # Each clip multiplies the odds of the value that it shows by this and leaves the others alone.
    log_odds = np.log(share) - np.log((1 - share) / (values - 1))
    scores = log_odds * counts
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def _personal(config: PersonalClipsConfig) -> dict[str, tuple[str, Sequence[str], float]]:
    """Question type -> what of a clip it goes by, its values, and the share of the clips that show the favourite."""
    return {"mine": ("colour", tuple(COLOURS), config.mine_share), "usual_room": ("room", ROOMS, config.usual_share)}


def _score(seen: np.ndarray, values: int, share: float, truth: np.ndarray) -> np.ndarray:
    """``[S]`` scores of the more probable answer to whether the last of ``seen [S, N]`` is the device's favourite."""
    yes = favourite_posterior(seen, values, share)[np.arange(len(seen)), seen[:, -1]]
    return np.where(np.isclose(yes, 0.5), 0.5, (yes > 0.5) == truth)


def accuracy_on(
    config: PersonalClipsConfig,
    clips: Mapping[str, Mapping[str, str]],
    queries: Iterable[tuple[Sequence[str], Sequence[str]]],
) -> float:
    """Accuracy of the observer on clips that are there, over all their open-ended questions: no sampling.

    Args:
        config: Settings of the data set.
        clips: Clip -> its columns.
        queries: Earlier clips that the observer sees, and clips of the same device that it is asked about.
    """
    right, asked_clips, personal = 0.0, 0, _personal(config)
    for earlier, asked in queries:
        right += (len(OPEN_TYPES) - len(personal)) * len(asked)
        asked_clips += len(asked)
        for kind, (column, values, share) in personal.items():
            seen = [[values.index(clips[clip][column]) for clip in (*earlier, one)] for one in asked]
            truth = np.array([clips[one][kind] == "yes" for one in asked])
            right += float(_score(np.array(seen), len(values), share, truth).sum())
    return right / (len(OPEN_TYPES) * asked_clips)


def room(
    config: PersonalClipsConfig, samples: int = 20_000, seed: int = 0, histories: Sequence[int] = (1, 4, 8, 16)
) -> dict[str, Any]:
    """Compute the room for adaptation by Monte Carlo on the latents.

    Each sample is a new device with one clip that is asked about, after as many earlier clips as the longest history
    has. An observer between two equally probable answers scores one half.

    Args:
        config: Settings of the data set.
        samples: Number of sampled devices, at least 2.
        seed: Seed of the samples.
        histories: Numbers C of earlier clips.

    Returns:
        ``accuracy``: observer -> question type, or ``overall`` (the mean over the open-ended questions of a clip)
        -> share of right answers. ``room_points``: 100 x (knows - blind), in the same keys; ``room_se_points``: its
        standard error over devices. ``samples`` and ``seed`` as given.

    Raises:
        UserError: If there are too few samples, or a history is negative.
    """
    if samples < 2:
        raise UserError(f"ideal observer: samples is {samples}; set it to 2 or more")
    if not histories or min(histories) < 0:
        raise UserError(f"ideal observer: histories is {list(histories)}; give numbers of clips, 0 or more")
    longest = max(histories)
    truth = draw_latents(config, np.random.default_rng([seed, samples]), samples, longest + 1)

    def scores(history: int) -> dict[str, np.ndarray]:
        """Question type -> ``[samples]`` expected score of the observer that has seen ``history`` earlier clips."""
        right = {kind: np.ones(samples) for kind in OPEN_TYPES}
        for kind, (column, values, share) in _personal(config).items():
            favourite, shown = getattr(truth, kind), getattr(truth, column)
            right[kind] = _score(shown[:, longest - history :], len(values), share, favourite == shown[:, -1])
        return right

    observers = {"knows": {kind: np.ones(samples) for kind in OPEN_TYPES}, "blind": scores(0)}
    observers.update({f"history_{history}": scores(history) for history in histories})
    for right in observers.values():
        right["overall"] = np.mean([right[kind] for kind in OPEN_TYPES], axis=0)
    gaps = {kind: 100 * (right - observers["blind"][kind]) for kind, right in observers["knows"].items()}
    return {
        "samples": samples,
        "seed": seed,
        "accuracy": {name: {kind: float(r.mean()) for kind, r in right.items()} for name, right in observers.items()},
        "room_points": {kind: float(gap.mean()) for kind, gap in gaps.items()},
        "room_se_points": {kind: float(gap.std(ddof=1) / np.sqrt(samples)) for kind, gap in gaps.items()},
    }
