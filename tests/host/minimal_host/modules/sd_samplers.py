"""The samplers, by name; schedules are chosen apart."""

from __future__ import annotations

from dataclasses import dataclass

from modules.sd_samplers_kdiffusion import samplers_data_k_diffusion


@dataclass(frozen=True)
class SamplerData:
    name: str


all_samplers = [*samplers_data_k_diffusion, SamplerData("DDIM"), SamplerData("Hidden")]


def visible_samplers() -> list[SamplerData]:
    return [sampler for sampler in all_samplers if sampler.name != "Hidden"]
