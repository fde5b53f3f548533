"""Steps that are undone and redone, across restarts, past changes from elsewhere, within a bounded file."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_train.data import caption_history
from lora_train.data.caption_history import History, moved, read_history, with_step, write_history


class Desk:
    """Captions and their history in a file, read again at every move."""

    def __init__(self, path: Path, **captions: str) -> None:
        self.path = path
        self.captions = captions

    def edit(self, what: str, **changed: str) -> None:
        write_history(self.path, with_step(read_history(self.path), what, "", self.captions, changed))
        self.captions = self.captions | changed

    def move(self, direction: caption_history.Direction) -> list[str]:
        """The problems."""
        outcome = moved(read_history(self.path), direction, self.captions)
        assert outcome is not None
        write_history(self.path, outcome[0])
        self.captions = self.captions | outcome[1].captions
        return outcome[1].problems


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "データ" / "caption_history.json"


def test_sixty_steps_back_and_forth(path: Path) -> None:
    desk = Desk(path, a="start", b="猫")
    states = [desk.captions]
    for number in range(60):
        desk.edit(f"step {number}", **{"ab"[number % 2]: f"{number}, 猫 {number}, end"})
        states.append(desk.captions)
    for state in states[-2::-1]:
        assert desk.move("undo") == []
        assert desk.captions == state
    assert moved(read_history(path), "undo", desk.captions) is None
    for state in states[1:]:
        assert desk.move("redo") == []
        assert desk.captions == state
    assert moved(read_history(path), "redo", desk.captions) is None


def test_an_edit_forgets_what_was_undone(path: Path) -> None:
    desk = Desk(path, a="1")
    desk.edit("first", a="2")
    desk.edit("second", a="3")
    desk.move("undo")
    desk.edit("third", a="4")
    history = read_history(path)
    assert [step.what for step in history.steps] == ["first", "third"]
    assert (history.to_undo(), history.to_redo()) == (history.steps[1], None)


def test_what_was_changed_elsewhere_is_kept_and_told(path: Path) -> None:
    desk = Desk(path, a="one", b="two", c="three", d="four")
    desk.edit("all", a="one x", b="two x", c="three x", d="four x")
    desk.captions["a"] = "typed by hand"
    desk.captions["b"] = "two"  # undone by hand: nothing to do, nothing to tell
    del desk.captions["c"]
    problems = desk.move("undo")
    assert desk.captions == {"a": "typed by hand", "b": "two", "d": "four"}
    assert [problem.split()[0] for problem in problems] == ["a", "c"]
    assert all(problem.endswith(".") for problem in problems)
    assert len(desk.move("redo")) == 2
    assert desk.captions == {"a": "typed by hand", "b": "two x", "d": "four x"}


def test_equal_length_and_middle_are_not_enough(path: Path) -> None:
    """Only the change is stored, but the whole caption must be the expected one."""
    desk = Desk(path, a="red cat, sun")
    desk.edit("rename", a="red dog, sun")
    desk.captions["a"] = "big dog, sun"
    assert len(desk.move("undo")) == 1
    assert desk.captions["a"] == "big dog, sun"


def test_a_damaged_file_is_set_aside(path: Path) -> None:
    assert read_history(path) == History()
    path.parent.mkdir()
    for content in (b"", b"{", b"[]", b'{"steps": [{"what": 5}]}', b"\xff\xfe"):
        path.write_bytes(content)
        assert read_history(path) == History()
        assert not path.exists()
        assert path.with_name(f"{path.name}.damaged").read_bytes() == content


@pytest.mark.parametrize("done", [-5, 0, 99])
def test_a_place_that_is_none_is_put_right(path: Path, done: int) -> None:
    desk = Desk(path, a="1")
    desk.edit("first", a="2")
    history = read_history(path)
    history.done = done
    write_history(path, history)
    assert read_history(path).done == min(max(done, 0), 1)


def test_a_tampered_change_harms_nothing(path: Path) -> None:
    desk = Desk(path, a="one two")
    desk.edit("first", a="one x two")
    path.write_bytes(path.read_bytes().replace(b'[4,""', b'[400,"evil"'))
    assert b"evil" in path.read_bytes()
    assert len(desk.move("undo")) == 1
    assert desk.captions == {"a": "one x two"}


def test_the_file_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(path, a="")
    for number in range(caption_history.MOST_STEPS + 5):
        desk.edit(f"step {number}", a=str(number))
    assert len(read_history(path).steps) == caption_history.MOST_STEPS
    monkeypatch.setattr(caption_history, "MOST_BYTES", 3_000)
    for number in range(5):
        desk.edit("long", a=str(number) * 1_000)
    assert 1 <= len(read_history(path).steps) < 5
    assert path.stat().st_size < 4_000
    desk.edit("longer than all", a="y" * 5_000)
    assert [step.what for step in read_history(path).steps] == ["longer than all"], "the last one always stays"
    desk.move("undo")
    assert desk.captions["a"] == "4" * 1_000


def test_fifty_edits_of_many_pictures_fit(path: Path) -> None:
    """A tag added to 2,000 captions of 300 letters."""
    captions = {f"4_cat/{number:04}.png": f"{number}, " + "tag, " * 60 for number in range(2_000)}
    changed = {key: f"{text}, long hair" for key, text in captions.items()}
    write_history(path, with_step(History(), "Add tags", "", captions, changed))
    assert 50 * path.stat().st_size < caption_history.MOST_BYTES / 3, "156 kB a step"
