"""The samplers that take a schedule."""

from __future__ import annotations

from types import SimpleNamespace

samplers_data_k_diffusion = [SimpleNamespace(name="DPM++ 2M"), SimpleNamespace(name="Euler a")]
