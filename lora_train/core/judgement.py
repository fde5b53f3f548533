"""What the judge found about the LoRAs of a training: `judgement.json` in its folder, and which one it recommends."""

from __future__ import annotations

import msgspec


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """One LoRA at one weight. Every number is better the higher it is, except `copying`."""

    lora: str
    """File name in the training's folder."""
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
    score: float = 0.0
    """All of it in one number, by which the table is ordered."""
    samples: tuple[str, ...] = ()
    """Pictures that were drawn for it, relative to the training's folder."""
    nearest: tuple[str, ...] = ()
    """For each of `samples` the training picture that is most alike, relative to the trained set."""


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
    """What looked at the pictures, for a person to read."""
    made: float = 0.0
    """Unix seconds."""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """`choice.json` in a training's folder: what the person took instead of the recommendation."""

    lora: str
    weight: float
