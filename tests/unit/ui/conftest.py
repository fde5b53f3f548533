"""Everything the live parts of the page can show, and which of it is words.

`page_words` reads those texts from HTML that languages have to translate; `rendered_states` is the HTML of every part
in every state; `script_words` are the texts of the page's script; `told_sentences` are those that errors and notes
have ready.
"""

from __future__ import annotations

import ast
import math
import re
import unicodedata
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from lora_train.app.snapshot import (
    BaseModelSnapshot,
    CurvePoint,
    DatasetSnapshot,
    Forecast,
    LoraEntry,
    PictureEntry,
    QueueEntry,
    Selection,
    Snapshot,
    TrainSnapshot,
    Undo,
)
from lora_train.core.health import BucketUse, Counted, Finding, Group, HealthReport, PictureHealth, Shown
from lora_train.core.jobs import JobStatus, State
from lora_train.ui import view, view_progress

JOB = "projects/Cat/versions/v1/trains/Cat-v1"
_NOT_WORDS = {"train-tools-value", "train-tools-sentence"}
_VOID = {"img", "br", "input", "line", "polyline", "hr", "meta", "link"}
_WORD_ATTRIBUTES = ("title", "placeholder", "aria-label", "data-done", "data-confirm")
_OPAQUE = {"script", "style", "textarea"}


class _Words(HTMLParser):
    """Collects text nodes and attributes that hold a letter, outside what is made elsewhere: values and sentences."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: set[str] = set()
        self._open: list[tuple[str, bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: text or "" for name, text in attrs}
        is_value = self._is_value or tag in _OPAQUE or not _NOT_WORDS.isdisjoint(given.get("class", "").split())
        if not is_value:
            self._take(*(given.get(name, "") for name in _WORD_ATTRIBUTES))
        if tag not in _VOID:
            self._open.append((tag, is_value))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        name, _ = self._open.pop()
        assert name == tag, f"</{tag}> closes <{name}>"

    def handle_data(self, data: str) -> None:
        if not self._is_value:
            self._take(data)

    def close(self) -> None:
        super().close()
        assert not self._open, f"never closed: {self._open}"

    @property
    def _is_value(self) -> bool:
        return bool(self._open) and self._open[-1][1]

    def _take(self, *texts: str) -> None:
        for text in texts:
            if any(unicodedata.category(letter).startswith("L") for letter in text):
                self.found.add(text.strip())


def _page_words(html: str) -> set[str]:
    """The texts that a language has to translate. AssertionError where elements are not closed in order."""
    parser = _Words()
    parser.feed(html)
    parser.close()
    return parser.found


@pytest.fixture(scope="session")
def page_words() -> Callable[[str], set[str]]:
    return _page_words


def make_status(state: State, **changes: object) -> JobStatus:
    status = JobStatus(
        state=state,
        phase="training",
        step=120,
        total_steps=1620,
        epoch=1,
        epochs=10,
        loss=0.1234,
        lr=1e-4,
        s_per_step=0.42,
        eta_s=630.0,
        device="cuda",
        peak_memory_mb=5222,
        sampled=["samples/a-000002.png"],
        step_of_file={"samples/a-000002.png": 324},
    )
    return msgspec.structs.replace(status, **changes)


def make_lora(stem: str, step: int, **changes: object) -> LoraEntry:
    lora = LoraEntry(
        file=f"{stem}.safetensors",
        stem=stem,
        size_bytes=18_400_000,
        step=step,
        epoch=step // 162,
        made=1_700_000_000.0 + step,
        prompt=f"<lora:{stem}:1> sks cat",
    )
    return msgspec.structs.replace(lora, **changes)


def make_train(state: State, place: int | None = None, **changes: object) -> TrainSnapshot:
    published = make_lora("Cat-v1", 1620, published="Cat-v1", previews=["samples/Cat-v1-grid.png"])
    return TrainSnapshot(
        job=JOB,
        name="Cat-v1",
        status=make_status(state, **changes),
        place=place,
        base_model="v1-5-pruned-emaonly",
        summary="Lion 0.0001 · rank 16 · batch 1 · 10 epochs",
        created=1_700_000_000.0,
        loras=[published, make_lora("Cat-v1-000002", 324)],
    )


def make_curve(points: int) -> list[CurvePoint]:
    """Falls from 0.2 to 0.1 with a wave on it."""
    return [
        CurvePoint(
            step=4 * number,
            loss=0.1 + 0.1 * math.exp(-number / 80) + 0.02 * math.sin(number * 1.7),
            lr=1e-4 * (1 + math.cos(math.pi * number / max(points, 2))) / 2,
        )
        for number in range(1, points + 1)
    ]


def make_pictures(count: int) -> list[PictureEntry]:
    captions = (
        "sks cat sitting on a red chair",
        "",
        "a photo of sks cat, looking at the viewer, grass, daylight, close up",
    )
    return [
        PictureEntry(
            file=f"9_Cat/{number:05d}-0-cat.png", width_px=512, height_px=512, caption=captions[number % 3], repeats=9
        )
        for number in range(count)
    ]


def make_snapshot(train: TrainSnapshot | None = None, **changes: object) -> Snapshot:
    snapshot = Snapshot(
        selection=Selection("Cat", "v1"),
        dataset=DatasetSnapshot(pictures=make_pictures(5)),
        trains=[train] if train else [],
        shown=train,
        curve=make_curve(200),
    )
    return msgspec.structs.replace(snapshot, **changes)


def make_forecast(**changes: object) -> Forecast:
    forecast = Forecast(pictures=18, repeats=9, views_per_epoch=162, epochs=10, total_steps=1620, seconds=240.0)
    return msgspec.structs.replace(forecast, **changes)


def _dataset_states() -> dict[str, str]:
    waiting = PictureEntry(file="new.jpg", width_px=3024, height_px=4032, caption="", is_waiting=True)
    ordinary = PictureEntry(file="1_cat/1.png", width_px=512, height_px=512, caption="cat", is_regularisation=True)
    other = msgspec.structs.replace(ordinary, file="1_cat/2.png")
    updates = {
        "updating": JobStatus(state="running", phase="cropping", phase_done=3, phase_total=18),
        "update begins": JobStatus(state="waiting"),
        "update failed": JobStatus(state="failed", message="The disk is full.", hint="Make room."),
        "update stopped": JobStatus(state="stopped"),
        "update with notes": JobStatus(state="finished", notes=["x.jpg can't be read; it was left out."]),
    }
    datasets = {
        "no picture": DatasetSnapshot(),
        "one picture": DatasetSnapshot(pictures=make_pictures(1)),
        "pictures": DatasetSnapshot(
            pictures=[*make_pictures(18), ordinary, waiting],
            problems=["9_Cat/00003-0-cat.png has no caption."],
            folders=["/home/me/outputs/train_tools/projects/Cat/versions/v1/dataset/processed/9_Cat"],
        ),
        **{
            name: DatasetSnapshot(pictures=[*make_pictures(2), ordinary, other], update=status)
            for name, status in updates.items()
        },
    }
    shown = {name: view.dataset_html(make_snapshot(dataset=dataset), "T") for name, dataset in datasets.items()}
    return {"no version": view.dataset_html(make_snapshot(selection=Selection()), "T"), **shown}


def _sum_states() -> dict[str, str]:
    several = make_forecast(
        batch_size=2, accumulation=4, is_exact=False, regularisation_pictures=20, views_per_epoch=324, total_steps=407
    )
    forecasts = {
        "sum": make_forecast(),
        "sum of ones": Forecast(pictures=1, repeats=1, views_per_epoch=1, epochs=1, total_steps=1, seconds=1.0),
        "sum in seconds": make_forecast(seconds=42.0),
        "sum in hours": make_forecast(seconds=9000.0),
        "sum without time": make_forecast(seconds=None),
        "sum with everything": several,
        "sum with one regularisation picture": msgspec.structs.replace(several, regularisation_pictures=1),
        "sum of folders": make_forecast(repeats=None),
        "sum of one view": make_forecast(repeats=None, views_per_epoch=1),
        "no sum": Forecast(),
        "impossible": Forecast(pictures=3, problems=["Choose a base model.", "Learning rate: 7 is not 0 to 1."]),
    }
    return {name: view.sum_html(forecast) for name, forecast in forecasts.items()}


def _model_states() -> dict[str, str]:
    models = {
        "model": BaseModelSnapshot("v1-5", "Stable Diffusion 1.x", "epsilon", 512),
        "model of v": BaseModelSnapshot("v2", "Stable Diffusion 2.x", "v_prediction", 768, clip_skip_matters=False),
        "model unknown": BaseModelSnapshot("x", "Stable Diffusion 2.x", "unknown", 768),
        "model refused": BaseModelSnapshot("flux", problem="flux.safetensors is not a Stable Diffusion checkpoint."),
        "no model": BaseModelSnapshot(),
    }
    return {name: view.model_html(model) for name, model in models.items()}


def _train_states() -> dict[str, str]:
    trains = {
        "running": make_train("running", 0),
        "running without length": make_train("running", 0, phase="", step=0, total_steps=0, loss=None),
        **{
            phase: make_train("running", 0, phase=phase, phase_done=2, phase_total=6) for phase in view_progress._PHASES
        },
        "silent": make_train("running", 0, silent_s=45.0),
        "with notes": make_train("running", 0, notes=["2 pictures are smaller than 512 px."]),
        "waiting": make_train("waiting", 2),
        "starting": make_train("waiting", 0),
        "never started": make_train("waiting"),
        "finished": make_train("finished"),
        "stopped": make_train("stopped"),
        "paused": make_train("paused"),
        "failed": make_train("failed", message="The card ran out of memory.", hint="Switch on gradient checkpointing."),
    }
    unsaved = make_train("finished")
    unsaved.loras = unsaved.loras[:1]
    nothing_saved = msgspec.structs.replace(make_train("running", 0), loras=[])
    shown = {
        name: view.progress_html(make_snapshot(train, log_tail="step 1"), 0.9, "T") for name, train in trains.items()
    }
    results = {f"results {name}": view.results_html(make_snapshot(train), "T") for name, train in trains.items()}
    return {
        "no train": view.progress_html(make_snapshot(curve=[]), 0.9),
        "foreign": view.progress_html(make_snapshot(curve=[], foreign="The card is busy with Dog v2."), 0.9),
        "no curve": view.progress_html(make_snapshot(make_train("running", 0), curve=[]), 0.9),
        **shown,
        "no results": view.results_html(make_snapshot(), "T"),
        "results of one LoRA": view.results_html(make_snapshot(unsaved), "T"),
        "results without LoRA": view.results_html(make_snapshot(nothing_saved), "T"),
        **results,
    }


def make_health_picture(number: int, **changes: object) -> PictureHealth:
    """A crop of 512 x 512 out of the middle of 1024 x 768."""
    picture = PictureHealth(
        file=f"9_Cat/{number:05d}-0-cat.png",
        width_px=512,
        height_px=512,
        caption="sks cat, grass" if number % 2 else "",
        is_regularisation=False,
        stamp=f"{number:012x}",
        bucket_px=(512, 512),
        outline_px=(1024, 768),
        kept_px=(128.0, 0.0, 896.0, 768.0),
        lost_by_update=0.25,
        lost_by_bucket=0.0,
        lost_share=0.25,
        enlargement=0.667,
    )
    return msgspec.structs.replace(picture, **changes)


def make_health(**changes: object) -> HealthReport:
    """Everything that a report can hold, many of some."""
    pictures = [make_health_picture(number) for number in range(30)]
    shapes = [make_health_picture(number, outline_px=(1024 + number, 768), lost_share=0.0) for number in range(30, 50)]
    files = [picture.file for picture in (*pictures, *shapes)]
    few = tuple(Shown(file, 1.83) for file in files[:3])
    tokens = tuple(Shown(file, 91) for file in files)
    pair, all_of_them = Group(tuple(files[2:4]), 6), (Group(tuple(files[:2])), Group(tuple(files)))
    tags = tuple(Counted(f"tag {number}", number) for number in range(70, 0, -1))
    report = HealthReport(
        pictures=[*pictures, *shapes],
        buckets=[BucketUse(512, 512, 50)],
        findings=[
            Finding(kind="no_buckets", level="error", title="It is bad.", remedy="Mend it.", sentences=("x is 7.",)),
            Finding(kind="few", level="warning", title="There are few.", remedy="Add some.", number=3, limit=5),
            Finding(kind="small", level="warning", title="Some are small.", limit=1.5, unit="×", pictures=few),
            Finding(
                kind="long", level="warning", title="Too long.", limit=75, unit="tokens", pictures=tokens
            ),
            Finding(
                kind="ratio", level="warning", title="It is very long.", limit=2, unit=":1",
                pictures=(Shown(files[0], 3.5, 0.714),),
            ),
            Finding(kind="same", level="warning", title="Equal.", groups=all_of_them),
            Finding(kind="near", level="warning", title="Alike.", limit=8, unit="bits", groups=(pair,)),
            Finding(kind="often", level="info", title="These are often.", limit=80, unit="%", counts=tags),
            Finding(kind="soft", level="info", title="Some are soft.", limit=30, unit="sharpness"),
            Finding(kind="grey", level="info", title="Some are grey.", pictures=(Shown(files[5]),)),
        ],
    )  # fmt: skip
    return msgspec.structs.replace(report, **changes)


def _health_states() -> dict[str, str]:
    running = JobStatus(state="running", phase="looking at the pictures", phase_done=3, phase_total=50)
    failed = JobStatus(state="failed", message="The disk is full.", hint="Make room.")
    reports = {
        "health": make_health(),
        "healthy": HealthReport(pictures=[make_health_picture(1)], buckets=[BucketUse(512, 512, 1)]),
        "health of nothing": HealthReport(),
        "health unknown": make_health(missing_facts=50),
        "health of one unknown": make_health(missing_facts=1, check=JobStatus(state="stopped")),
        "health check begins": make_health(missing_facts=50, check=JobStatus(state="waiting")),
        "health check": make_health(missing_facts=47, check=running),
        "health check failed": make_health(missing_facts=50, check=failed),
        "health known": make_health(check=JobStatus(state="finished")),
    }
    shown = {name: view.health_html(report, Selection("Cat", "v1"), "T") for name, report in reports.items()}
    return {"health without version": view.health_html(HealthReport(), Selection(), "T"), **shown}


def _other_states() -> dict[str, str]:
    queue = [
        QueueEntry(JOB, "Cat v1: Cat-v1", "train", "running"),
        QueueEntry("b", "Dog v2: Dog-v2", "train", "waiting"),
        QueueEntry("c", "Dog v2: previews of Dog-v2", "preview", "waiting"),
    ]
    return {
        "no queue": view.queue_html(make_snapshot()),
        "queue": view.queue_html(make_snapshot(queue=queue)),
        "queue of previews": view.queue_html(make_snapshot(queue=[QueueEntry("c", "Dog", "preview", "running")])),
        "queue of regularisation": view.queue_html(
            make_snapshot(queue=[QueueEntry("d", "Dog v2: animal", "regularisation", "running")])
        ),
        "no message": view.message_html(""),
        "message": view.message_html("Saved."),
        "error": view.message_html("There is no project Cat.", "Press Refresh.", "error"),
        "undo": view.message_html("", undo=Undo("the project Cat", "2024/Cat")),
    }


@pytest.fixture(scope="session")
def script_words() -> set[str]:
    """The texts that the page's script shows by itself, which languages have to translate too."""
    script = (Path(__file__).parents[3] / "javascript" / "train_tools.js").read_text(encoding="utf-8")
    block = script.partition("const WORDS = {")[2].partition("};")[0]
    return set(re.findall(r'^\s*\w+: "(.*)",$', block, re.MULTILINE))


@pytest.fixture(scope="session")
def rendered_states() -> dict[str, str]:
    """Every live part in every state, by name."""
    return {
        **_dataset_states(),
        **_sum_states(),
        **_model_states(),
        **_train_states(),
        **_health_states(),
        **_other_states(),
    }


# --- sentences of errors and notes: a person at the page reads them, so languages have to translate them ---

_CORE = Path(__file__).parents[3] / "lora_train"
_TELLERS = ("api", "app", "core", "data", "engine", "hosts", "launch", "ui", "publish.py", "worker.py")
_SILENT_FILES = {
    "core/config.py": "helps of settings, which are found on the page",
    "api/openapi.py": "read by other programs",
    "api/gate.py": "the page's script says in words of its own that the login has ended",
    "hosts/standalone.py": "told to the terminal",
}
_SILENT_CALLS = {
    "Route": "describes itself to other programs",
    "TimeoutError": "goes to the log",
    "_log": "goes to the log",
    "_LOG": "goes to the log",
}
_SILENT_SENTENCES = {
    "Send it as application/json.": "told to other programs",
    "There is no such file.": "told to a browser that looks for the script, the style or a language",
    "Give the path of a .safetensors LoRA.": "told to the terminal",
    "Give the folder that `lora-train train` printed first.": "told to the terminal",
    "There is none yet.": "told to the terminal",
    "Train Tools is training on this card. Stop or pause it in the Train Tools tab, or wait for its end.": (
        "the WebUI shows it with the error's name, in one text"
    ),
}
_SENTENCE = re.compile(r"[A-Z].* .*[.!?]")


def _silent_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Docstrings, pieces of texts with values, and what calls of `_SILENT_CALLS` are given."""
    for node in ast.walk(tree):
        inner = node.func if isinstance(node, ast.Call) else None
        while isinstance(inner, ast.Attribute):
            inner = inner.value
        is_silent_call = isinstance(inner, ast.Name) and inner.id in _SILENT_CALLS
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_silent_call or is_docstring or isinstance(node, ast.JoinedStr):
            yield from ast.walk(node)


@pytest.fixture(scope="session")
def told_sentences() -> set[str]:
    """Every sentence without a value that the program holds, but for those that no person at the page meets."""
    found: set[str] = set()
    for path in sorted(path for name in _TELLERS for path in (*(_CORE / name).rglob("*.py"), _CORE / name)):
        if path.suffix != ".py" or path.relative_to(_CORE).as_posix() in _SILENT_FILES:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        silent = set(_silent_nodes(tree))
        texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node not in silent)
        found |= {text for text in texts if isinstance(text, str) and _SENTENCE.fullmatch(text)}
    assert _SILENT_SENTENCES.keys() <= found, "not in the program any more"
    return found - _SILENT_SENTENCES.keys()
