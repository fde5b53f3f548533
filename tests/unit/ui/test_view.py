"""What the page shows: nothing foreign gets through as HTML, words can be translated, buttons fit the state."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from html import unescape
from pathlib import Path

import msgspec
import pytest

from lora_train.app.snapshot import (
    BaseModelSnapshot,
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
from lora_train.app.tasks import TaskEntry
from lora_train.core.jobs import JobStatus
from lora_train.ui import view
from lora_train.ui.html import duration_text, live, size_text

EVIL = "\"'><script>alert(1)</script>&"
ROOT = Path(__file__).parents[3]


def text_of(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", "", html)).split())


def buttons_of(html: str) -> dict[str, tuple[str, object]]:
    """Text of a button -> (route, body)."""
    found = re.findall(r'<button[^>]* data-post="([^"]+)" data-body="([^"]+)"[^>]*>([^<]*)</button>', html)
    return {text: (route, json.loads(unescape(body))) for route, body, text in found}


def test_tasks() -> None:
    going = TaskEntry("3", "Apply", 512, 2000, can_stop=True, has_ended=False, is_left=False)
    told = view.tasks_html([going])
    assert text_of(told) == "Apply 512 / 2000Stop"
    assert buttons_of(told) == {"Stop": ("tasks/stop", {"task": "3"})}
    assert text_of(view.tasks_html([msgspec.structs.replace(going, what="", total=0, can_stop=False)])) == "Working"
    ended = msgspec.structs.replace(going, has_ended=True, message=EVIL, hint="Make room.")
    hidden = view.tasks_html([ended])
    assert 'data-ended="3" hidden' in hidden, "the page that began it takes it"
    assert 'class="train-tools-message train-tools-tasks" hidden' in hidden
    left = view.tasks_html([msgspec.structs.replace(ended, is_left=True)])
    assert " hidden" not in left
    assert "<script" not in left
    assert buttons_of(left) == {"Close": ("tasks/close", {"task": "3"})}
    done = msgspec.structs.replace(going, has_ended=True, is_left=True)
    assert text_of(view.tasks_html([done])) == "Apply is done.Close"
    assert view.tasks_html([]) == ""


def evil_snapshot() -> Snapshot:
    status = JobStatus(
        state="failed",
        phase=EVIL,
        device=EVIL,
        message=EVIL,
        hint=EVIL,
        notes=[EVIL],
        sampled=[f"samples/{EVIL}.png"],
        step_of_file={f"samples/{EVIL}.png": 1},
        total_steps=1,
    )
    loras = [
        LoraEntry(EVIL, EVIL, 1, 1, 1, 0.0, previews=[EVIL], published=EVIL, prompt=EVIL),
        LoraEntry(EVIL + "2", EVIL, 1, 1, 1, 0.0),
    ]
    train = TrainSnapshot(EVIL, EVIL, status, base_model=EVIL, summary=EVIL, loras=loras)
    picture = PictureEntry(EVIL, 1, 1, EVIL, stamp=EVIL)
    dataset = DatasetSnapshot([picture, msgspec.structs.replace(picture, is_waiting=True)], [EVIL], [EVIL], status)
    queue = [QueueEntry(f"{state}{EVIL}", EVIL, "train", state) for state in ("running", "waiting", "waiting")]
    return Snapshot(
        Selection(EVIL, EVIL), EVIL, EVIL, dataset, [train], train, [], log_tail=EVIL, queue=queue, foreign=EVIL
    )


@pytest.mark.parametrize(
    "html",
    [
        view.dataset_html(evil_snapshot(), EVIL),
        view.progress_html(evil_snapshot(), 0.9, EVIL),
        view.results_html(evil_snapshot(), EVIL),
        view.queue_html(evil_snapshot()),
        view.sum_html(Forecast(problems=[EVIL])),
        view.model_html(BaseModelSnapshot(EVIL, EVIL, EVIL)),
        view.model_html(BaseModelSnapshot(problem=EVIL)),
        view.message_html(EVIL, EVIL, "error", Undo(EVIL, EVIL)),
    ],
    ids=["dataset", "progress", "results", "queue", "sum", "model", "refusal", "message"],
)
def test_nothing_foreign_becomes_html(html: str, page_words: Callable[[str], set[str]]) -> None:
    assert "<script" not in html
    assert "alert" in html
    assert not any("alert" in words for words in page_words(html))  # it stands in values, and all elements are closed


def test_what_a_button_sends_survives_escaping() -> None:
    train = TrainSnapshot(job=EVIL, name="n", status=JobStatus(state="running"), place=0)
    html = view.progress_html(Snapshot(Selection("p", "v"), shown=train), 0.9)
    assert buttons_of(html)["Pause"] == ("jobs/pause", {"job": EVIL})


def test_every_state_is_whole_html(rendered_states: dict[str, str], page_words: Callable[[str], set[str]]) -> None:
    """Closed in order, without an empty attribute where a number is missing, no NaN, no None."""
    assert len(rendered_states) > 50
    for name, html in rendered_states.items():
        page_words(html)
        assert not re.search(r"\b(nan|None|inf)\b", html), name
        keys = re.findall(r'data-key="([^"]*)"', html)
        assert len(keys) == len(set(keys)), name  # the script finds elements again by them


def test_words_stand_alone(rendered_states: dict[str, str], page_words: Callable[[str], set[str]]) -> None:
    """No digit and no pictograph shares a text with words: hosts would not translate it."""
    for name, html in rendered_states.items():
        for words in page_words(html):
            foreign = [letter for letter in words if unicodedata.category(letter) == "So" or letter.isdigit()]
            assert not foreign or words.startswith(("Drop 10-20", "Send to txt2img", "WD14 tagger")), f"{name}: {words}"


def test_the_sum_in_words(rendered_states: dict[str, str]) -> None:
    assert (
        text_of(rendered_states["sum"])
        == "18 pictures × 9 repeats × 10 epochs ÷ batch 1 = 1620 steps, about 4 minutes on this machine"
    )
    assert text_of(rendered_states["sum of ones"]).startswith("1 picture × 1 repeat × 1 epoch ÷ batch 1 = 1 step,")
    assert text_of(rendered_states["sum in hours"]).endswith("= 1620 steps, about 2.5 hours on this machine")
    assert "known after the first training" in text_of(rendered_states["sum without time"])
    views = "(18 pictures × 9 repeats + 162 views of 20 regularisation pictures)"
    everything = text_of(rendered_states["sum with everything"])
    assert everything.startswith(f"{views} × 10 epochs ÷ batch 2 ÷ accumulation 4 → 407 steps, about")
    assert "162 picture views (18 pictures, repeats differ between folders) × 10" in text_of(
        rendered_states["sum of folders"]
    )


def test_all_reasons_instead_of_the_sum(rendered_states: dict[str, str]) -> None:
    told = text_of(rendered_states["impossible"])
    assert "Choose a base model." in told
    assert "Learning rate: 7" in told
    assert "×" not in told


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("running", {"Stop and save": "jobs/stop", "Pause": "jobs/pause", "Stop now": "jobs/kill"}),
        ("waiting", {"Cancel": "queue/cancel"}),
        ("starting", {"Cancel": "queue/cancel"}),
        ("never started", {"Put into the queue": "jobs/resume"}),
        ("stopped", {"Resume": "jobs/resume"}),
        ("paused", {"Resume": "jobs/resume"}),
        ("failed", {"Resume": "jobs/resume"}),
        ("finished", {}),
    ],
)
def test_buttons_by_state(rendered_states: dict[str, str], state: str, expected: dict[str, str]) -> None:
    found = {text: route for text, (route, _) in buttons_of(rendered_states[state]).items()}
    assert found == expected


def test_only_stop_now_asks_first(rendered_states: dict[str, str]) -> None:
    asking = {
        text
        for html in rendered_states.values()
        for text in re.findall(r"<button[^>]*data-confirm=[^>]*>([^<]*)<", html)
    }
    assert asking == {"Stop now"}


def test_a_running_train_is_not_deleted(rendered_states: dict[str, str]) -> None:
    assert "Delete train" not in buttons_of(rendered_states["results running"])
    assert "Delete train" not in buttons_of(rendered_states["results waiting"])
    assert "Delete train" in buttons_of(rendered_states["results finished"])


def test_a_published_lora_says_so(rendered_states: dict[str, str]) -> None:
    one = rendered_states["results of one LoRA"]
    assert "in models/Lora" in one
    assert buttons_of(one)["Un-publish"][0] == "loras/unpublish"
    assert "Publish" not in buttons_of(one)
    assert "Draw previews" not in buttons_of(one)  # it has some


def test_silence_is_told_after_half_a_minute(rendered_states: dict[str, str]) -> None:
    assert "No sign of life for 45 s" in text_of(rendered_states["silent"])
    assert "No sign of life" not in rendered_states["running"]


def test_the_verdict_is_told_in_words_and_values_apart(
    rendered_states: dict[str, str], page_words: Callable[[str], set[str]]
) -> None:
    """The judge's own sentence has values in it, so that no language could translate it."""
    html = rendered_states["judge done"]
    told = text_of(html.replace("</p>", ". "))
    assert "The best choice: Cat-v1 × 0.8. As like your pictures as they are among themselves: 71%. " in told
    assert "Follows prompts as well as the base model: 90%. Still draws ordinary prompts right: 100%. " in told
    assert "Judged by: the base model. " in told
    assert {"The best choice:", "Still draws ordinary prompts right:", "the base model"} <= page_words(html)
    assert "Nothing is recommended: all of them were spoiled." in text_of(rendered_states["judge none is worth it"])


def test_the_summary_of_a_train_can_be_translated(
    rendered_states: dict[str, str], page_words: Callable[[str], set[str]]
) -> None:
    html = rendered_states["results of one LoRA"]
    assert "Lion 0.0001 · continues Dog-v2 · batch 1 · epochs 10" in text_of(html)
    assert {"continues", "batch", "epochs"} <= page_words(html)


def test_peak_memory_and_pace(rendered_states: dict[str, str]) -> None:
    told = text_of(rendered_states["running"])
    assert "Peak memory" in told
    assert "5.1 GB" in told  # 5222 MB / 1024
    assert "10 min 30 s" in told  # 630 s
    assert "Time left" not in text_of(rendered_states["finished"])


def test_the_queue_is_moved_by_places(rendered_states: dict[str, str]) -> None:
    moves = re.findall(r'data-body="([^"]*place[^"]*)"', rendered_states["queue"])
    assert [json.loads(unescape(body)) for body in moves] == [{"job": "b", "place": 2}, {"job": "c", "place": 1}]


def test_pictures_carry_the_token_and_what_the_editor_needs() -> None:
    picture = PictureEntry("9_ねこ/a b.png", 512, 768, "two\nlines & more", is_waiting=True)
    html = view.dataset_html(Snapshot(Selection("ねこ", "v1"), dataset=DatasetSnapshot([picture])), "a/b")
    source = unescape(re.findall(r'src="([^"]+)"', html)[0])
    assert source.startswith("./train-tools/v1/dataset/picture?project=%E3%81%AD%E3%81%93&version=v1&file=9_")
    assert "waiting=1" in source
    assert source.endswith("&token=a%2Fb&size=thumb")
    assert 'data-caption="two\nlines &amp; more"' in html
    assert "token" not in view.dataset_html(Snapshot(Selection("p", "v"), dataset=DatasetSnapshot([picture])), "")


def test_live_parts_are_one_element() -> None:
    assert live("queue", "x") == '<div class="train-tools-live" data-live="queue">x</div>'
    assert 'role="status"' in live("message", "")


def test_numbers_for_people() -> None:
    assert [duration_text(seconds) for seconds in (0, 59.4, 60, 250, 3900)] == [
        *("0 s", "59 s", "1 min 00 s", "4 min 10 s", "1 h 05 min")
    ]
    assert [size_text(size_bytes) for size_bytes in (900, 99_000, 18_400_000)] == ["1 kB", "99 kB", "18.4 MB"]


def test_the_style_touches_only_our_own_page() -> None:
    style = re.sub(r"/\*.*?\*/", "", (ROOT / "style.css").read_text(encoding="utf-8"), flags=re.DOTALL)
    style = re.sub(r"@keyframes train-tools-[^{]+\{.*?\}\s*\}", "", style)
    for selectors in re.findall(r"([^{}]+)\{", style):
        for selector in re.sub(r"\([^)]*\)", "", selectors).split(","):
            assert selector.strip().startswith((".train-tools-", "#train_tools_", ".dark .train-tools-", "@media"))


def test_the_words_of_the_script_are_found(script_words: set[str]) -> None:
    """Each line of its table is one text, and each is used."""
    script = (ROOT / "javascript" / "train_tools.js").read_text(encoding="utf-8")
    table = script.partition("const WORDS = {")[2].partition("};")[0]
    assert len(script_words) == len(table.strip().splitlines())
    for name in re.findall(r"^ *(\w+):", table, re.MULTILINE):
        assert f"WORDS.{name}" in script or f"{name}: () =>" in script or f'"{name}"' in script, name
