"""Real pages in headless Chromium: the standalone page, a small WebUI of our own, and a genuine one where there is one.

TRAIN_TOOLS_SITES     what to test, e.g. "webui=/venv-a/bin/python,standalone=/venv-b/bin/python": each Python has
                      the gradio that its page is to run on. "webui@/path/to/stable-diffusion-webui=PYTHON" is a
                      genuine WebUI. Without it: "standalone" on this Python.
TRAIN_TOOLS_CHROMIUM  the browser (default: /usr/bin/chromium)
TRAIN_TOOLS_AXE       axe.min.js of axe-core; the accessibility test is skipped without it
"""

from __future__ import annotations

import base64
import importlib.util
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.sites import DEMO, Kind, Site

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

PATIENCE_S = 180.0
"""For anything that a page shows; most of it is there within a second, on a machine that does nothing else."""
CHROMIUM_FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


def _kinds() -> list[Kind]:
    given = os.environ.get("TRAIN_TOOLS_SITES", f"standalone={sys.executable}")
    kinds: list[Kind] = []
    for entry in given.split(","):
        name, _, python = entry.strip().partition("=")
        name, _, folder = name.partition("@")
        kinds.append(Kind(name, python, folder))
    return kinds


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        kinds = _kinds()
        only = metafunc.definition.get_closest_marker("sites")
        if only is not None:
            kinds = [kind for kind in kinds if kind.name in only.args or (kind.folder and "genuine" in only.args)]
        metafunc.parametrize("kind", kinds, ids=str, scope="module")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = next((name for name in ("playwright", "gradio") if importlib.util.find_spec(name) is None), None)
    if missing is None and not Path(os.environ.get("TRAIN_TOOLS_CHROMIUM", "/usr/bin/chromium")).exists():
        missing = "Chromium"
    here = str(Path(__file__).parent)
    for item in items:
        if missing and str(item.path).startswith(here):
            item.add_marker(pytest.mark.skip(reason=f"browser tests need {missing}"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Not kept longer: while Playwright runs, no other test of this process can have an event loop of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=os.environ.get("TRAIN_TOOLS_CHROMIUM", "/usr/bin/chromium"), args=CHROMIUM_FLAGS
        )
        yield chromium
        chromium.close()


@pytest.fixture
def new_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Starts sites that end with the test."""
    sites: list[Site] = []

    def start(kind: Kind, *flags: str, is_installed: bool = True) -> Site:
        site = Site(kind, tmp_path / f"site{len(sites)}", flags, is_installed=is_installed)
        site.start()
        sites.append(site)
        return site

    yield start
    for site in sites:
        site.end()


@pytest.fixture(scope="module")
def site(kind: Kind, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Site]:
    """One site for the tests of a module that don't disturb each other."""
    running = Site(kind, tmp_path_factory.mktemp("site"))
    running.start()
    failed_before = request.session.testsfailed
    yield running
    running.end()
    if request.session.testsfailed == failed_before:
        shutil.rmtree(running.root, ignore_errors=True)


class Tab:
    """The Train Tools tab in one browser page, by the words and ids that a person and a user's CSS rely on."""

    def __init__(self, page: Page, site: Site, theme: str) -> None:
        self.page = page
        self.site = site
        self.theme = theme
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self) -> Tab:
        """Load the page and turn to the tab."""
        self.page.goto(f"{self.site.url}?__theme={self.theme}", wait_until="domcontentloaded")
        if self.site.kind.name == "webui":
            self.page.get_by_role("tab", name="Train Tools").or_(
                self.page.locator("button", has_text=re.compile("^\\s*Train Tools\\s*$"))
            ).first.click()
        self.id("project_create").wait_for(state="visible")
        self.live("message").wait_for(state="attached")
        return self

    def reload_ui(self) -> None:
        """The WebUI's own "Reload UI": the same process serves a new page."""
        before = self.site.times_ready()
        self.page.evaluate("document.getElementById('settings_restart_gradio').click()")
        self.site.wait_until_up(before + 1)
        self.open()

    def id(self, name: str) -> Locator:
        return self.page.locator(f"#train_tools_{name}")

    def live(self, name: str) -> Locator:
        return self.page.locator(f'[data-live="{name}"]')

    def field(self, name: str) -> Locator:
        """The thing to type into, of a component."""
        return self.id(name).locator("input, textarea").first

    def fill(self, name: str, text: str) -> None:
        """Type into a field and leave it, as a person does."""
        field = self.field(name)
        field.fill(text)
        field.press("Tab")

    def tick(self, name: str, wanted: bool) -> None:
        box = self.id(name).locator("input[type=checkbox]")
        if box.is_checked() != wanted:
            box.click()

    def open_group(self, title: str) -> None:
        """Open one of the accordions. Gradio 6 makes its fields only then, and for a moment hears nothing of what is
        typed into them; no person is as quick.
        """
        self.page.locator("#train_tools_page").get_by_text(title, exact=True).click()
        self.page.wait_for_timeout(500)

    def teach_the_star(self, epochs: int) -> None:
        """The settings that make the small model learn the demo's concept, and draw it; 16 steps an epoch."""
        self.choose("train_base_model", "tiny_sd.safetensors")
        for title in ("Learning rate and optimizer", "Validation", "Previews"):
            self.open_group(title)
        values = {
            "epochs": str(epochs),
            "batch_size": "4",
            "learning_rate": "0.004",
            "text_encoder_lr": "0.004",
            "rank": "8",
            "save_every_epochs": str(epochs // 4),
            "hold_out": "0",
            "preview_cfg_scale": "3",
            "lr_warmup_steps": "20",
            "preview_prompts": "sks, white background\nsks, black background",
        }
        for name, value in values.items():
            self.fill(f"train_{name}", value)
        self.choose("train_preview_sampler", "DDIM")
        for title in ("Learning rate and optimizer", "Validation", "Previews"):
            self.open_group(title)
        self.fill("dataset_repeats", "4")
        self.shows(lambda: f"= {epochs * 16} steps" in self.text("sum"))

    def choose(self, name: str, label: str) -> None:
        """Choose an entry of a dropdown by its words."""
        self.field(name).click()
        option = self.page.get_by_role("option", name=label, exact=True).or_(
            self.page.locator("ul.options li", has_text=label)
        )
        option.first.click()

    def chosen(self, name: str) -> str:
        """What a dropdown shows."""
        field = self.field(name)
        return field.input_value() if field.count() else ""

    def make(self, project: str, version: str = "v1") -> None:
        """Create Project and Create Version, as the tutorial says."""
        self.id("project_create").click()
        self.fill("project_name", project)
        self.id("project_create_ok").click()
        self.shows(lambda: self.chosen("project_choice") == project)
        self.make_version(version)

    def make_version(self, version: str) -> None:
        self.id("version_create").wait_for(state="visible")
        self.id("version_create").click()
        self.fill("version_name", version)
        self.id("version_create_ok").click()
        self.shows(lambda: self.chosen("version_choice") == version)

    def drop(self, files: list[Path], zone: str = "dataset_upload") -> None:
        """Drop files on Upload Dataset, or another upload: real drag-and-drop events with real files."""
        payload = [(path.name, base64.b64encode(path.read_bytes()).decode()) for path in files]
        transfer = self.page.evaluate_handle(
            """files => {
                const transfer = new DataTransfer();
                for (const [name, content] of files) {
                    const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0));
                    const type = name.endsWith(".txt") ? "text/plain" : "image/png";
                    transfer.items.add(new File([bytes], name, {type}));
                }
                return transfer;
            }""",
            payload,
        )
        place = self.id(zone).locator("input[type=file]").locator("xpath=..")
        for event in ("dragenter", "dragover", "drop"):
            place.dispatch_event(event, {"dataTransfer": transfer})

    def make_dataset(self, files: list[Path]) -> None:
        """Upload Dataset and Update Dataset, with pictures and their captions."""
        count = sum(path.suffix != ".txt" for path in files)
        self.drop(files)
        self.shows(lambda: self.live("dataset").locator("figure").count() == count)
        self.id("dataset_update").click()
        self.shows(lambda: self.live("dataset").get_by_text("512 × 512").count() == count)
        self.wait_for_update()

    def wait_for_update(self) -> None:
        """Until *Update Dataset* has ended: its pictures are shown a moment before."""
        self.shows(lambda: self.live("dataset").get_by_role("progressbar").count() == 0)

    def shows(self, condition: Callable[[], Any], timeout_s: float = PATIENCE_S) -> None:
        """Wait until something is true of the page."""
        until = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > until:
                where = self.site.root / f"failure-{time.time():.0f}.png"
                self.page.screenshot(path=where, full_page=True)
                pytest.fail(f"not seen within {timeout_s:g} s; see {where}\n{self.told()}\n{self.site.told()}")
            self.page.wait_for_timeout(100)

    def told(self) -> str:
        """What the page says and what its script complained of: all that is left of a failure far away."""
        script = "parts => parts.map(part => `${part.dataset.live}: ${part.innerText.slice(0, 500)}`)"
        parts = self.page.locator(".train-tools-live").evaluate_all(script)
        return "\n".join([*parts, *self.errors])

    def text(self, live: str) -> str:
        return " ".join(self.live(live).first.inner_text().split())


@pytest.fixture(scope="module")
def open_tab(browser: Browser) -> Iterator[Callable[..., Tab]]:
    """Opens the tab in a new browser window with cookies and storage of its own."""
    contexts: list[Any] = []

    def start(site: Site, *, theme: str = "light", is_there: bool = True, **options: Any) -> Tab:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, "locale": "en-US", **options})
        context.set_default_timeout(PATIENCE_S * 1000)
        contexts.append(context)
        tab = Tab(context.new_page(), site, theme)
        if is_there:
            return tab.open()
        tab.page.goto(site.url)
        return tab

    yield start
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    """Three photographs without captions, wider than high, square, and wider than high: scikit-image's."""
    skimage = pytest.importorskip("skimage", reason="its photographs are needed")
    folder = Path(skimage.__file__).parent / "data"
    return [folder / name for name in ("coffee.png", "astronaut.png", "chelsea.png")]


@pytest.fixture(scope="session")
def concept_files() -> list[Path]:
    """The 16 pictures of the demo's concept and their captions."""
    return sorted((DEMO / "pictures" / "1_sks").iterdir())
