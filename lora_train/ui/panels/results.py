"""Step 3: every train of the version and its LoRAs; all of it is a live part."""

from __future__ import annotations

from lora_train.ui.page import Page


def add_results(page: Page) -> None:
    page.add_heading("3", "Results")
    page.add_live("results")
    page.add_live("judge")
    page.add_live("sweeps")
