"""Previews on the page: what they cost, what a job in each state offers, and pages of single pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import unescape

import msgspec
import pytest

from lora_train.app.grid_snapshot import GridAxis, GridForecast, GridJob, GridsPage, LoraGrid
from lora_train.core.grid_settings import GridSettings
from lora_train.core.jobs import JobStatus
from lora_train.ui import view
from lora_train.ui.view_grids import PAGE_LENGTH

EVIL = "\"'><script>alert(1)</script>&"
GRID = GridSettings(prompt="sks", width_px=64, height_px=64, seeds=(1,))


def job(state: str = "finished", *, pictures: int = 4, **changes: object) -> GridJob:
    files = [f"pictures/{number:05d}-0.png" for number in range(pictures)]
    made = GridJob(
        job="jobs/1-grid",
        created=1.0,
        status=JobStatus(state=state),  # type: ignore[arg-type]
        grid=GRID,
        axes=[GridAxis("weight", ["0", "1"])],
        total=4,
        drawn=pictures,
        loras=[LoraGrid(stem="a", file="a-grid.png", pictures=files)],
    )
    return msgspec.structs.replace(made, **changes)


def shown(entry: GridJob, pictures: str = "") -> str:
    return view.grids_html(GridsPage([entry]), "to/ken", pictures)


def text_of(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", "", html)).split())


def routes_of(html: str) -> dict[str, tuple[str, object]]:
    found = re.findall(r'<button[^>]* data-post="([^"]+)" data-body="([^"]+)"[^>]*>([^<]*)</button>', html)
    return {text: (route, json.loads(unescape(body))) for route, body, text in found}


def test_nothing_foreign_becomes_html(page_words: Callable[[str], set[str]]) -> None:
    grid = msgspec.structs.replace(GRID, prompt=EVIL, samplers=(EVIL,), include_sub_pictures=True)
    status = JobStatus(state="failed", message=EVIL, hint=EVIL, notes=[EVIL], phase=EVIL)
    loras = [LoraGrid(stem=EVIL, file=EVIL, pictures=[EVIL])]
    evil = job(job=EVIL, status=status, grid=grid, loras=loras, axes=[GridAxis("lora", [EVIL])], file=EVIL)
    for html in (shown(evil, f"1 {EVIL}"), view.grids_sum_html(GridForecast(problems=[EVIL]))):
        assert "<script" not in html
        assert not any("alert" in words for words in page_words(html))


def test_the_sum_in_words() -> None:
    told = view.grids_sum_html(GridForecast(loras=2, pictures=24, seconds=180.0))
    assert text_of(told) == "24 pictures (2 LoRAs, 12 each), about 3 minutes on this machine"
    told = view.grids_sum_html(GridForecast(loras=1, pictures=1))
    assert text_of(told) == "1 picture (1 LoRA); the time is known after the first preview"
    told = view.grids_sum_html(GridForecast(pictures=24, problems=["No LoRA.", "No model."]))
    assert "No LoRA." in told
    assert "24" not in told


@pytest.mark.parametrize(
    ("state", "place", "expected"),
    [
        ("finished", None, {"Delete": "grids/delete"}),
        ("running", 0, {"Stop": "grids/stop"}),
        ("waiting", 0, {"Stop": "grids/stop"}),
        ("waiting", 2, {"Stop": "grids/stop"}),
        ("waiting", None, {"Go on": "grids/resume", "Delete": "grids/delete"}),
        ("stopped", None, {"Go on": "grids/resume", "Delete": "grids/delete"}),
        ("failed", None, {"Go on": "grids/resume", "Delete": "grids/delete"}),
    ],
)
def test_buttons_by_state(state: str, place: int | None, expected: dict[str, str]) -> None:
    html = shown(job(state, place=place))
    assert {text: route for text, (route, _) in routes_of(html).items()} == expected
    assert all(body == {"job": "jobs/1-grid"} for _, body in routes_of(html).values())
    assert 'data-grid="jobs/1-grid"' in html


def test_what_is_not_there_is_not_offered() -> None:
    html = shown(job("running", pictures=0, drawn=0, place=0, loras=[LoraGrid(stem="a")]))
    assert "data-grid" not in html
    assert "<img" not in html
    assert "0 / 4" in text_of(html)


def test_grids_carry_the_token_and_their_titles() -> None:
    html = shown(job(file="all-grid.png"))
    sources = [unescape(source) for source in re.findall(r'src="([^"]+)"', html)]
    assert sources == [
        f"./train-tools/v1/grids/picture?job=jobs%2F1-grid&file={file}&size=thumb&token=to%2Fken"
        for file in ("all-grid.png", "a-grid.png")
    ]
    assert "all LoRAs" in html
    assert "Lora multiplier 0, 1" in text_of(html)


def test_single_pictures_come_in_pages() -> None:
    wanted = msgspec.structs.replace(GRID, include_sub_pictures=True)
    many = job(pictures=130, grid=wanted)

    def page(pictures: str) -> tuple[list[str], list[str]]:
        html = shown(many, pictures)
        turns = re.findall(r'data-param="pictures" data-value="([^"]+)"', html)
        return re.findall(r'data-file="pictures/(\d+)-0\.png"', html), turns

    first, turns = page("")
    assert (len(first), first[0], turns) == (PAGE_LENGTH, "00000", ["2 jobs/1-grid"])
    second, turns = page("2 jobs/1-grid")
    assert (len(second), second[0], turns) == (PAGE_LENGTH, "00060", ["1 jobs/1-grid", "3 jobs/1-grid"])
    last, turns = page("99 jobs/1-grid")
    assert (len(last), turns) == (10, ["2 jobs/1-grid"])
    for other in ("2 jobs/2-grid", "x", "0 jobs/1-grid", "-3 jobs/1-grid", "9" * 5000 + " jobs/1-grid"):
        assert page(other)[0] == first
    assert "data-file" not in shown(job(pictures=130))
