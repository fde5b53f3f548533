"""What the judge found about the LoRAs of a training: `judgement.json` in its folder, and which one it recommends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

import msgspec

FILE_NAME = "judgement.json"
CHOICE_NAME = "choice.json"
SAMPLES_FOLDER = "samples/judge"
"""Of the pictures that were judged, relative to the training's folder."""

JUDGING = "judging"
"""The phase of such a job in which pictures are drawn, one `done` for each."""

WEIGHTS = (0.6, 0.8, 1.0)
PICTURES = 8
"""What is judged where a person asks for nothing else."""

LOST, KEPT = 0.5, 0.9
"""Obedience and retention: at KEPT and above all likeness counts, at LOST and below none."""
FRESH, COPIED = 0.3, 0.7
"""Copying: up to FRESH all likeness counts, from COPIED on none."""
LEAST_SCORE = 0.02
"""A LoRA is recommended from here on; the base model itself has 0."""


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """One LoRA at one weight. Every number is better the higher it is, except `copying` and `broken`.

    None of them is NaN: what could not be measured is the worst that it can be.
    """

    lora: str
    """File name in the training's folder."""
    step: int = 0
    """After which it was saved; 0 where that is not known."""
    weight: float
    likeness: float
    """To the training pictures: 0 is what the base model draws of the same prompts, 1 the pictures among themselves."""
    held_out_likeness: float | None = None
    """To the held-out pictures, likewise; None where there are none."""
    obedience: float = 0.0
    """How well pictures follow what prompts ask for beside the concept, as a share of what the base model reaches."""
    retention: float = 0.0
    """Share of ordinary prompts that are still drawn as what they are, 0 to 1."""
    copying: float = 0.0
    """0 is a fresh variation, 1 a plain copy of a training picture."""
    broken: float = 0.0
    """Share of pictures that are one plain colour or have no finite numbers."""
    score: float = 0.0
    """All of it in one number, by which the table is ordered."""
    samples: tuple[str, ...] = ()
    """Pictures that were drawn for it, relative to the training's folder."""
    nearest: tuple[str, ...] = ()
    """For each of `samples` the training picture that is most alike, relative to the trained set."""
    copies: tuple[float, ...] = ()
    """For each of `samples` how much of a copy it is, 0 to 1."""


BASE_MODEL = "the base model"
"""What looked at the pictures where no encoder was given."""


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """The table, and the recommendation."""

    rows: tuple[Judged, ...]
    """Best first."""
    lora: str = ""
    """The recommended file; empty where none is worth it."""
    weight: float = 1.0
    reason: str = ""
    """In one sentence."""
    encoder: str = ""
    """What looked at the pictures: the name of an encoder's file, or `BASE_MODEL`."""
    made: float = 0.0
    """Unix seconds."""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """`choice.json` in a training's folder: what the person took instead of the recommendation."""

    lora: str
    weight: float


class Recommendation(NamedTuple):
    """A file and its weight, and why; the file is empty where none is recommended."""

    lora: str
    weight: float
    reason: str


def score_of(row: Judged) -> float:
    """Likeness, as far as the rest holds; -1 to about 1, 0 is the base model.

    gain = likeness, or the mean of both likenesses where pictures were held out, from -1 to 1
    score = gain                                                                             where gain <= 0
    score = gain * hold(obedience) * hold(retention) * fresh(copying) * (1 - broken)         else

    hold rises in a straight line from 0 at LOST to 1 at KEPT, fresh falls from 1 at FRESH to 0 at COPIED.
    A number that is not finite counts as the worst there is.
    """
    likeness = _known(row.likeness, -1.0)
    if row.held_out_likeness is not None:
        likeness = (likeness + _known(row.held_out_likeness, -1.0)) / 2
    gain = min(1.0, max(-1.0, likeness))
    if gain <= 0:
        return gain
    return gain * holding(row)


def holding(row: Judged) -> float:
    """How much of a row's likeness counts, 0 to 1: the product of all but the first factor of `score_of`."""
    obeys = _rise(_known(row.obedience, 0.0), LOST, KEPT)
    keeps = _rise(_known(row.retention, 0.0), LOST, KEPT)
    is_fresh = 1 - _rise(_known(row.copying, 1.0), FRESH, COPIED)
    return obeys * keeps * is_fresh * (1 - _rise(_known(row.broken, 1.0), 0.0, 1.0))


def ranked(rows: Sequence[Judged]) -> tuple[Judged, ...]:
    """Best first. Scores that are equal in their two shown digits are a tie: the earlier save, then the smaller weight.

    A save of which the step is not known comes after those that are.
    """
    return tuple(sorted(rows, key=lambda row: (-round(score_of(row), 2), row.step or math.inf, row.weight)))


def recommend(rows: Sequence[Judged]) -> Recommendation:
    """The best of `rows`, and why in one sentence; none where no row is better than the base model."""
    if not rows:
        return Recommendation("", 1.0, "Nothing is recommended: no LoRA was judged.")
    best = ranked(rows)[0]
    if score_of(best) < LEAST_SCORE:
        return Recommendation("", 1.0, _why_none(rows))
    reason = RECOMMENDED.format(
        name=f"Step {best.step}" if best.step else Path(best.lora).stem,
        weight=f"{best.weight:g}",
        likeness=f"{_known(best.likeness, -1.0):.0%}",
        obedience=f"{_known(best.obedience, 0.0):.0%}",
        retention=f"{_known(best.retention, 0.0):.0%}",
    )
    return Recommendation(best.lora, best.weight, reason)


RECOMMENDED = (
    "{name} at weight {weight} is the best choice: {likeness} of the likeness that your pictures have among "
    "themselves; it follows prompts {obedience} as well as the base model, and still draws {retention} of ordinary "
    "prompts right."
)
_NOT_ALIKE = "Nothing is recommended: no LoRA draws pictures that are more like yours than the base model's."
_WHY_NONE = {
    "broken": "Nothing is recommended: the LoRAs draw empty pictures.",
    "retention": "Nothing is recommended: what is more like your pictures has lost what the base model knew.",
    "obedience": "Nothing is recommended: what is more like your pictures no longer follows its prompt.",
    "copying": "Nothing is recommended: what is more like your pictures only copies them.",
}


def _why_none(rows: Sequence[Judged]) -> str:
    """The first of these that fails the row that is most like the pictures."""
    alike = max(rows, key=lambda row: _known(row.likeness, -1.0))
    if _known(alike.broken, 1.0) > 0.5:
        return _WHY_NONE["broken"]
    if _known(alike.likeness, -1.0) < LEAST_SCORE:
        return _NOT_ALIKE
    held = {
        "retention": _rise(_known(alike.retention, 0.0), LOST, KEPT),
        "obedience": _rise(_known(alike.obedience, 0.0), LOST, KEPT),
        "copying": 1 - _rise(_known(alike.copying, 1.0), FRESH, COPIED),
    }
    return _WHY_NONE[min(held, key=lambda name: held[name])]


def pictures_to_draw(loras: int, weights: int, pictures: int) -> int:
    """How many pictures a judgement draws: of the concept and of ordinary prompts, also by the base model alone.

    Weight 0 is not drawn again, so it is not to be counted among `weights`.
    """
    return (1 + loras * weights) * 2 * pictures


def judge_prompts(captions: Sequence[str], concept: str, contexts: Sequence[str], count: int) -> tuple[str, ...]:
    """What is drawn of the concept, at most `count`: captions of the training pictures and `concept` in `contexts`.

    They alternate, as far as both reach. Captions show what was learned, foreign contexts whether prompts are still
    followed. Each is there once; captions are taken evenly from the list.
    """
    own = list(dict.fromkeys(caption for caption in captions if caption.strip()))
    wanted = min(len(own), count)
    own = [own[index * len(own) // wanted] for index in range(wanted)]
    foreign = [f"{concept}, {context}" if concept else context for context in contexts]
    both = chain.from_iterable(zip_longest(own, foreign))
    return tuple(dict.fromkeys(prompt for prompt in both if prompt))[:count]


def _known(value: float, worst: float) -> float:
    return value if math.isfinite(value) else worst


def _rise(value: float, low: float, high: float) -> float:
    """0 up to `low`, 1 from `high` on, a straight line between."""
    return min(1.0, max(0.0, (value - low) / (high - low)))
