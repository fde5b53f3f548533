"""Takes the pictures of the README: a real page and a real training, in headless Chromium, in English and Japanese.

    python tests/assets/take_screenshots.py            # into docs/screenshots; takes some minutes
    python tests/assets/take_screenshots.py FOLDER     # somewhere else

The small model learns the demo's star. The pictures are 1280 px wide, in 256 colours. Those of a genuine Automatic1111
are kept by `tests/browser/test_genuine.py`; `python tests/assets/take_screenshots.py --shrink IN OUT TOP HEIGHT` cuts
and shrinks one of them.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.browser.conftest import CHROMIUM_FLAGS, DEMO, Kind, Site, Tab  # noqa: E402  (needs the root)

MOST_PX = 1000
"""Higher than a screen, nobody reads a picture."""
MARGIN_PX = 12
WORK_S = 900
NAMES = {"en": "Star", "ja": "自作LORA"}
LOCALES = {"en": "en-US", "ja": "ja-JP"}
SETTINGS = {
    "epochs": 24,
    "batch_size": 4,
    "learning_rate": 0.004,
    "text_encoder_lr": 0.004,
    "rank": 8,
    "alpha": 8,
    "save_every_epochs": 8,
    "hold_out": 0,
    "lr_warmup_steps": 20,
    "preview_cfg_scale": 3,
    "preview_sampler": "DDIM",
    "preview_prompts": ["sks, white background", "sks, black background"],
    "repeats": 4,
}
"""With which the small model learns the star; a real one wants none of these rates."""


class Camera:
    """One browser window in one language, and the folder that its pictures go to."""

    def __init__(self, tab: Tab, language: str, folder: Path) -> None:
        self.tab = tab
        self.language = language
        self.folder = folder

    def take(self, name: str, *, top: Any = None, bottom: Any = None, most_px: int = MOST_PX) -> None:
        """From one place of the page to another (from its top, to its end), at most so high."""
        page = self.tab.page
        self.tab.shows(lambda: page.evaluate(_PICTURES_ARE_THERE))
        page.mouse.move(0, 0)
        page.wait_for_timeout(300)
        whole = Image.open(io.BytesIO(page.screenshot(full_page=True)))
        begin_px = _top_px(top) - MARGIN_PX if top is not None else 0
        end_px = _top_px(bottom) - 3 if bottom is not None else whole.height
        begin_px = max(0, begin_px)
        shrink(whole, self.folder / f"{name}-{self.language}.png", begin_px, min(most_px, end_px - begin_px))

    def heading(self, number: int) -> Any:
        return self.tab.page.locator(".train-tools-heading").nth(number - 1)

    def ask(self, path: str, body: Any = None) -> Any:
        """A call of the API, as the page's own script makes it."""
        page = self.tab.page
        token = {"X-Train-Tools": page.locator("[data-token]").first.get_attribute("data-token")}
        url = f"{self.tab.site.url}train-tools/v1/{path}"
        answer = page.request.post(url, data=body, headers=token) if body else page.request.get(url, headers=token)
        if not answer.ok:
            raise RuntimeError(answer.text())
        return answer.json()

    def wait(self, is_true: Callable[[], Any]) -> None:
        until = time.monotonic() + WORK_S
        while not is_true():
            if time.monotonic() > until:
                raise RuntimeError(f"waited too long\n{self.tab.site.log()}")
            self.tab.page.wait_for_timeout(300)


_PICTURES_ARE_THERE = """() => {
    for (const image of document.images) image.loading = 'eager';
    return [...document.images].every(image => image.complete);
}"""


def _top_px(place: Any) -> int:
    return round(place.evaluate("element => element.getBoundingClientRect().top + window.scrollY"))


def shrink(picture: Image.Image, path: Path, top_px: int, height_px: int) -> None:
    """Cut it and keep it in 256 colours, without dither: letters stay sharp, and it is a third of the size."""
    cut = picture.convert("RGB").crop((0, top_px, picture.width, min(picture.height, top_px + height_px)))
    few = cut.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(path, "PNG", optimize=True)
    print(f"{path}: {few.width} x {few.height}, {path.stat().st_size // 1024} KB")


def take_the_steps(camera: Camera, files: list[Path]) -> None:
    """The tutorial from its second step on, with a picture of every step."""
    version = {"project": NAMES[camera.language], "version": "v1"}
    _make_project(camera, version)
    _fill(camera, version, files)
    _train(camera, version)
    _judge(camera, version)


def _make_project(camera: Camera, version: dict[str, str]) -> None:
    tab, name = camera.tab, version["project"]
    tab.id("project_create").click()
    tab.fill("project_name", name)
    camera.take("step-2-project", top=tab.id("project_choice"), bottom=tab.id("doctor"))
    tab.id("project_create_ok").click()
    tab.shows(lambda: tab.chosen("project_choice") == name)
    tab.make_version(version["version"])


def _fill(camera: Camera, version: dict[str, str], files: list[Path]) -> None:
    tab = camera.tab
    tab.make_dataset(files)
    settings = {**SETTINGS, "base_model": camera.ask("base-models")[0]["path"]}
    told = camera.ask("settings", {**version, "train": settings})
    if told["problems"]:
        raise RuntimeError(told["problems"])
    tab.open()
    tab.shows(lambda: "384" in tab.text("sum"))
    tab.shows(lambda: tab.live("dataset").locator("figure").count() == len(files) // 2)
    camera.take("step-3-pictures", top=camera.heading(1), bottom=tab.id("captions"))


def _train(camera: Camera, version: dict[str, str]) -> None:
    tab = camera.tab

    def trains() -> Any:
        return camera.ask(f"trains?{urlencode(version)}")

    tab.id("train_begin").click()
    camera.wait(lambda: any(train["status"]["step"] > 260 for train in trains()))
    tab.page.wait_for_timeout(1500)
    camera.take("step-4-training", top=camera.heading(2), bottom=camera.heading(3))
    camera.wait(lambda: all(train["status"]["state"] == "finished" for train in trains()))


def _judge(camera: Camera, version: dict[str, str]) -> None:
    tab = camera.tab
    (train,) = camera.ask(f"trains?{urlencode(version)}")
    camera.ask("judge", {"job": train["job"]})
    camera.wait(lambda: not camera.ask("queue"))
    tab.open()
    tab.shows(lambda: "models/Lora" in tab.text("results"))
    tab.shows(lambda: tab.live("judge").locator("table").count() > 0)
    camera.take("step-5-results", top=camera.heading(3))


def take_the_parts(camera: Camera, files: list[Path], photos: list[Path], folder: Path) -> None:
    """Health check and caption editor, of pictures that have something to be told."""
    tab = camera.tab
    folder.mkdir()
    for file in files:  # as large as they are cropped: sharp edges stay sharp
        if file.suffix == ".png":
            with Image.open(file) as small:
                small.resize((512, 512), Image.Resampling.NEAREST).save(folder / file.name)
        else:
            shutil.copy(file, folder)
    with Image.open(photos[0]) as coffee:
        for name, size_px in {"coffee": (600, 400), "small": (90, 60), "very-long": (1600, 200)}.items():
            coffee.resize(size_px).save(folder / f"{name}.png")
            (folder / f"{name}.txt").write_text("a cup of coffee, table, spoon", encoding="utf-8")
        coffee.convert("RGB").save(folder / "again.jpg", quality=70)
    (folder / "again.txt").write_text("a cup of coffee, table", encoding="utf-8")
    tab.make("Coffee")
    tab.make_dataset(sorted(folder.iterdir()))
    tab.open_group("Health check")
    tab.shows(lambda: tab.live("health").locator("section").count() > 3)
    camera.take("health", top=tab.id("health"), bottom=tab.id("captions"), most_px=700)
    tab.open_group("Health check")
    tab.open_group("Caption editor")
    tab.fill("captions_text", "night")
    tab.id("captions_preview").click()
    tab.shows(lambda: "captions would change" in tab.id("captions_changes").first.inner_text())
    camera.take("captions", top=tab.id("captions"), bottom=tab.id("regularisation"), most_px=760)


def take_other_looks(dark: Camera, phone: Camera) -> None:
    for one in (dark, phone):
        one.tab.shows(lambda one=one: one.tab.live("judge").locator("table").count() > 0)
    dark.take("dark", top=dark.heading(2), bottom=dark.heading(3))
    phone.take("phone", top=phone.heading(2), most_px=1400)


def main() -> None:
    if sys.argv[1:2] == ["--shrink"]:
        source, target, top_px, height_px = sys.argv[2:]
        with Image.open(source) as picture:
            shrink(picture, Path(target), int(top_px), int(height_px))
        return
    import skimage
    from playwright.sync_api import sync_playwright

    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted((DEMO / "pictures" / "1_sks").iterdir())
    photos = [Path(skimage.__file__).parent / "data" / name for name in ("coffee.png",)]
    with tempfile.TemporaryDirectory() as root, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM_FLAGS)
        for language in NAMES:
            site = Site(Kind("standalone", sys.executable, ""), Path(root) / language)
            site.start()

            def camera(language: str, site: Site = site, theme: str = "light", width_px: int = 1280) -> Camera:
                size = {"width": width_px, "height": 900}
                window = chromium.new_context(viewport=size, locale=LOCALES[language])
                window.set_default_timeout(60_000)
                return Camera(Tab(window.new_page(), site, theme).open(), language, folder)

            take_the_steps(camera(language), files)
            if language == "en":
                take_other_looks(camera(language, theme="dark"), camera(language, width_px=390))
                take_the_parts(camera(language), files, photos, Path(root) / "parts")
            site.end()
        chromium.close()


if __name__ == "__main__":
    main()
