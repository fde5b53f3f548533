"""`lora-train sweep`: told, worked off in the foreground, and stopped by Ctrl-C."""

from __future__ import annotations

import json
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

from lora_train.core.jobs import JobFolder

if TYPE_CHECKING:
    from tests.integration.conftest import Studio

SET = ("--set", "epochs=2000", "--set", "save_every_epochs=0", "--set", "cpu_threads=1", "--base-model", "demo")


@pytest.fixture
def sweep(studio: Studio) -> list[object]:
    """The command over a version with a trained set."""
    version = studio.app.workspace.project("cat").version("v1")
    studio.pictures(str(version.dataset_dir.relative_to(studio.root) / "1_cat"), ["a cat", "a red cat"])
    return ["sweep", "--workspace", studio.app.workspace.root, "--name", "cat", *SET]


def test_the_plan_is_told_and_nothing_begun(studio: Studio, sweep: list[object]) -> None:
    told = studio.cli(
        *sweep, "--learning-rates", "1e-3,2e-3", "--ranks", "2,4", "--finish-by", "07:30", "--plan", "--json"
    )
    assert told.returncode == 0, told.stderr
    forecast: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])["forecast"]
    assert forecast["labels"] == [f"{rate} · rank {rank}" for rate in (0.001, 0.002) for rank in (2, 4)]
    assert (forecast["total_steps"], forecast["plan"][0]["steps_to"]) == (4 * 4000, 20)
    assert "0.002 · rank 4" in told.stderr
    assert list(studio.app.workspace.root.rglob("job.json")) == []
    wrong = studio.cli(*sweep, "--optimizers", "Lion,Sofia", "--finish-by", "x")
    assert (wrong.returncode, "Traceback" in wrong.stderr) == (2, False)
    assert "optimizers (Optimizers)" in wrong.stderr


def test_a_run_on_each_card(studio: Studio, sweep: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Three runs and two cards: two at once, the third when one of them has ended."""
    monkeypatch.setenv("TRAIN_TOOLS_CARDS", "0,1")
    told = studio.cli(*sweep, "--set", "epochs=8", "--learning-rates", "1e-3,2e-3,3e-3", "--json")
    assert told.returncode == 0, told.stderr
    rows = json.loads(told.stdout.splitlines()[-1])["sweep"]["rows"]
    assert [row["status"]["state"] for row in rows] == ["finished"] * 3
    trains = studio.app.workspace.find_version("cat", "v1").trains_dir
    times = [[event.t for event in JobFolder(trains / row["name"]).events()] for row in rows]
    (first_begins, first_ends), (second_begins, second_ends), (third_begins, _) = ((t[0], t[-1]) for t in times)
    assert second_begins < first_ends
    assert first_begins < second_ends
    assert third_begins > min(first_ends, second_ends)
    assert [told.stderr.count(f"Card {card}: {trains}") for card in (0, 1)] in ([2, 1], [1, 2])


@pytest.mark.skipif(sys.platform == "win32", reason="a console's Ctrl-C can't be sent to one process there")
def test_ctrl_c_stops_all_after_saving(studio: Studio, sweep: list[object]) -> None:
    running = studio.background(
        *sweep, "--learning-rates", "1e-3,2e-3", "--json",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    first = JobFolder(studio.app.workspace.find_version("cat", "v1").trains_dir / "cat-v1")
    studio.wait_for_step(first, running, 1)
    assert studio.app.queue.entries() == [], "the page would begin them too"
    running.send_signal(signal.SIGINT)
    output, errors = (stream.decode("utf-8") for stream in running.communicate(timeout=180))
    assert running.returncode == 0, errors
    assert "Traceback" not in errors
    told = json.loads(output.splitlines()[-1])["sweep"]
    assert (told["ended"], [row["status"]["state"] for row in told["rows"]]) == ("stopped", ["stopped", "waiting"])
    assert (first.path / told["rows"][0]["lora"]).is_file()
