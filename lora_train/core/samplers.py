"""The samplers that previews are drawn with, by Automatic1111's names; they are computed in `engine.samplers`.

Each is what Automatic1111 1.10 and Forge draw under that name with the schedule "Automatic".
"""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

Sampler = Literal[
    "DDIM",
    "Euler",
    "Euler a",
    "DPM++ 2M",
    "DPM++ 2M Karras",
    "DPM++ 2S a",
    "DPM2",
    "DPM2 a",
    "Heun",
    "LMS",
]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)


class SamplerFacts(msgspec.Struct, frozen=True):
    """What tells samplers apart that have the same formula for a step."""

    name: str
    """As hosts write it into pictures."""
    schedule: Literal["Automatic", "Karras"] = "Automatic"
    """The schedule type that hosts write into pictures."""
    calls_per_step: int = 1
    """How often the UNet is asked in a step, the last one aside."""


_FACTS: dict[Sampler, SamplerFacts] = {
    "DPM++ 2M": SamplerFacts("DPM++ 2M", "Karras"),
    "DPM++ 2M Karras": SamplerFacts("DPM++ 2M", "Karras"),
    "DPM++ 2S a": SamplerFacts("DPM++ 2S a", "Karras", 2),
    "DPM2": SamplerFacts("DPM2", "Karras", 2),
    "DPM2 a": SamplerFacts("DPM2 a", "Karras", 2),
    "Heun": SamplerFacts("Heun", calls_per_step=2),
}
"""Those that are not plain. "DPM++ 2M Karras" is the name that hosts had for it up to 1.8."""


def sampler_facts(sampler: Sampler) -> SamplerFacts:
    return _FACTS.get(sampler, SamplerFacts(sampler))


def sampler_calls(name: str, steps: int) -> int:
    """Looks of the UNet for one picture, about; one in each step for a sampler that is not ours."""
    facts = next((facts for known, facts in _FACTS.items() if known == name), SamplerFacts(name))
    return steps * facts.calls_per_step


def unknown_sampler(name: str) -> str:
    """The problem with a sampler that can't be used here, for a ConfigError; "" where there is none."""
    if name in SAMPLERS:
        return ""
    return f"samplers (Sampling method): {name!r} can't be drawn by Train Tools; use {', '.join(SAMPLERS)}"
