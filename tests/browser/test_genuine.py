"""A genuine WebUI: installed as a person does it, the whole story, and a picture that the LoRA changes.

TRAIN_TOOLS_SITES=webui@/path/to/stable-diffusion-webui=/its/python python -m pytest tests/browser/test_genuine.py
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.browser.conftest import Kind, Site, Tab

ROOT = Path(__file__).resolve().parents[2]
INSTALL_S = 300
"""diffusers and three small packages are downloaded where they are missing."""


@pytest.mark.sites("genuine")
def test_installed_trained_and_drawn_with(
    kind: Kind, new_site: Callable[..., Site], open_tab: Callable[..., Tab], concept_files: list[Path]
) -> None:
    site = new_site(kind, is_installed=False)
    tab = open_tab(site, is_there=False)
    page = tab.page
    page.get_by_role("button", name="Extensions", exact=True).click()
    page.get_by_role("button", name="Install from URL").click()
    page.get_by_label("URL for extension's git repository").fill(str(ROOT))
    page.get_by_role("button", name="Install", exact=True).click()
    page.get_by_text("Installed into").wait_for(timeout=INSTALL_S * 1000)
    _keep(page, "1-installed")
    tab.reload_ui()
    tab.make("自作LORA")
    tab.make_dataset(concept_files)
    tab.teach_the_star(epochs=24)
    _keep(page, "2-before-the-start")
    page.get_by_role("button", name="Begin Train").click()
    tab.shows(lambda: re.search(r"Step 1\d\d / 384", tab.text("progress")), 120)
    _keep(page, "3-training")
    tab.shows(lambda: "finished" in tab.text("progress").lower(), 300)
    tab.shows(lambda: "in models/Lora" in tab.text("results"))
    _keep(page, "4-finished")

    tab.live("results").get_by_role("button", name="Send to txt2img").first.click()
    prompt = page.locator("#txt2img_prompt textarea")
    tab.shows(lambda: prompt.is_visible() and "<lora:自作LORA-v1:1> sks" in prompt.input_value())
    page.locator("#txt2img_extra_tabs").get_by_role("button", name="Lora").click()
    tab.shows(lambda: page.locator("#txt2img_lora_cards .card", has_text="自作LORA-v1").count() >= 1)
    page.wait_for_timeout(1000)
    _keep(page, "5-card")

    words = "sks, white background"
    without = _picture(site, page, words)
    assert np.array_equal(without, _picture(site, page, words)), "the same seed gives the same picture"
    with_lora = _picture(site, page, f"{words} <lora:自作LORA-v1:1>")
    difference = float(np.abs(without.astype(int) - with_lora.astype(int)).mean())
    print(f"mean difference of the picture with the LoRA: {difference:.1f} of 255")
    assert difference > 5
    _keep_pair(without, with_lora)
    assert not tab.errors
    _the_proof_was_drawn_here_too(site, tab)
    _grids_are_drawn_by_the_host(site, page)


def _the_proof_was_drawn_here_too(site: Site, tab: Tab) -> None:
    def proof() -> Any:
        file = next(site.workspace.glob("projects/*/versions/*/trains/*/proofs.json"), None)
        proofs = {} if file is None else json.loads(file.read_text(encoding="utf-8"))["loras"]
        return next(iter(proofs.values()), {"facts": []})

    ends = ("Drawn by", "Not drawn by the WebUI", "Not asked: the WebUI has another checkpoint loaded")
    tab.shows(lambda: any(fact["name"] in ends for fact in proof()["facts"]), 120)
    assert proof().get("reason", "") == ""
    assert {"name": "Drawn by", "value": "Automatic1111 v1.10.1"} in proof()["facts"]


def _grids_are_drawn_by_the_host(site: Site, page: Any) -> None:
    """With LoRAs that are not in its folder: the middle ones of the training were not published."""
    token = {"X-Train-Tools": page.locator("[data-token]").first.get_attribute("data-token")}
    version = {"project": "自作LORA", "version": "v1"}

    def ours(path: str, body: Any = None) -> Any:
        url = f"{site.url}train-tools/v1/{path}"
        answer = (
            page.request.get(url, headers=token) if body is None else page.request.post(url, data=body, headers=token)
        )
        assert answer.ok, answer.text()
        return answer.json()

    preview = {
        "drawn_by": "host",
        "prompt": "sks, white background",
        "samplers": ["DDIM", "DPM++ 2M Karras"],
        "weights": [0, 1],
        "seeds": [1],
        "steps": [8],
        "cfg_scales": [3],
        "batch_size": 2,
    }
    assert ours("settings", {**version, "preview": preview})["problems"] == []
    (job,) = ours("grids", version)["jobs"]
    query = f"grids?project={quote(version['project'])}&version=v1"
    until = time.monotonic() + 300
    while (told := ours(query)["jobs"][0])["status"]["state"] not in ("finished", "failed", "stopped"):
        assert time.monotonic() < until, told
        time.sleep(1)
    assert told["status"]["state"] == "finished", (told, site.log())
    assert told["drawn"] == told["total"] == 4 * 2 * 2 * 2
    assert told["status"]["result"]["failed"] == 0
    pictures = {}
    for lora in told["loras"]:
        for file in lora["pictures"]:
            with Image.open(site.workspace / job / file) as picture:
                pictures[lora["stem"], file] = picture.text["parameters"], picture.convert("RGB").tobytes()
    stems = sorted({stem for stem, _ in pictures})
    assert len(stems) == 4
    for stem in stems:
        own = [value for (name, _), value in sorted(pictures.items()) if name == stem]
        assert all(f"<lora:{stem}:" in text and "Steps: 8" in text for text, _ in own)
        assert [text.count("Schedule type: Karras") for text, _ in own] == [0] * 4 + [1] * 4
        assert len({pixels for _, pixels in own}) == 8, "each weight, sampler and seed gives another picture"
    at_one = {pixels for (_, file), (text, pixels) in pictures.items() if ":1> " in text and "Seed: 1," in text}
    assert len(at_one) == 4 * 2, "each LoRA draws pictures of its own"
    at_zero = {pixels for _, (text, pixels) in pictures.items() if ":0> " in text and "Seed: 1," in text}
    assert len(at_zero) == 2, "at weight 0 no LoRA changes anything"


def _picture(site: Site, page: Any, prompt: str) -> np.ndarray:
    settings = {"seed": 1, "width": 64, "height": 64, "steps": 20, "cfg_scale": 3, "sampler_name": "DDIM"}
    answer = page.request.post(f"{site.url}sdapi/v1/txt2img", data={"prompt": prompt, **settings}, timeout=120_000)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.json()["images"][0]))).convert("RGB"))


def _keep(page: Any, name: str) -> None:
    folder = os.environ.get("TRAIN_TOOLS_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"genuine-{name}.png", full_page=True)


def _keep_pair(without: np.ndarray, with_lora: np.ndarray) -> None:
    folder = os.environ.get("TRAIN_TOOLS_SCREENSHOTS")
    if folder:
        pair = Image.fromarray(np.concatenate([without, with_lora], 1))
        pair.resize((512, 256), Image.Resampling.NEAREST).save(Path(folder) / "genuine-6-without-and-with.png")
