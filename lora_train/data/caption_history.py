"""The edits of a version's captions, in `dataset/caption_history.json`: they can be undone and redone after a restart.

A step keeps of each caption only what changed, and digests of the whole text before and after. Undo and redo touch a
caption only where the digest is that of the expected one, so what somebody wrote meanwhile is never lost. A captioning
job is a step too, from before it begins; its changes are read from its own record, so that a killed one can be undone.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from lora_train.core.files import write_bytes
from lora_train.core.records import read_json

Direction = Literal["undo", "redo"]

MOST_STEPS = 100
MOST_BYTES = 32_000_000
"""Of the file; older steps are forgotten first. 50 times a tag for 2,000 pictures takes 8 MB."""


class Change(msgspec.Struct, frozen=True, array_like=True):
    """What became of one caption: from `start` on, `before` was replaced by `after`."""

    start: int
    before: str
    after: str
    digest_before: str
    """Of the whole caption."""
    digest_after: str


class Step(msgspec.Struct, frozen=True):
    """One edit: what it did in fixed words, what the person typed, when (unix seconds), and each caption's change."""

    what: str
    detail: str
    time: float
    changes: dict[str, Change]
    """By the picture's path, relative to the trained set."""
    job: str = ""
    """The captioning job that makes the changes, as long as they stand in its own record alone."""


class History(msgspec.Struct):
    """Steps, oldest first. The first `done` can be undone, the others redone."""

    steps: list[Step] = []
    done: int = 0

    def to_undo(self) -> Step | None:
        return self.steps[self.done - 1] if self.done > 0 else None

    def to_redo(self) -> Step | None:
        return self.steps[self.done] if self.done < len(self.steps) else None


class Move(msgspec.Struct, frozen=True):
    """What undoing or redoing a step means for the captions as they are."""

    step: Step
    captions: dict[str, str]
    """To be written."""
    problems: list[str]
    """One sentence for every caption that can't be put back."""


def read_history(path: Path) -> History:
    """An empty one where there is no file; a damaged one is set aside. Raises OSError when it can't be read."""
    history = read_json(path, History, History())
    history.done = min(max(history.done, 0), len(history.steps))
    return history


def write_history(path: Path, history: History) -> None:
    """Raises OSError when the disk is full or the folder can't be written; the old file is then still there."""
    write_bytes(path, msgspec.json.encode(history))


def with_step(history: History, what: str, detail: str, before: Mapping[str, str], after: Mapping[str, str]) -> History:
    """The history with one more step, in place of those that were undone. `before` has all captions of `after`."""
    changes = {key: _change(before[key], text) for key, text in after.items()}
    return _with(history, Step(what, detail, time.time(), changes))


def with_job(history: History, what: str, detail: str, job: str) -> History:
    """The history with a step for a captioning job that is about to begin, in place of those that were undone."""
    return _with(history, Step(what, detail, time.time(), {}, job))


def with_job_changes(history: History, written: Callable[[str], Mapping[str, tuple[str, str]]]) -> History:
    """The history with the changes of captioning jobs, of which `written` gives each caption before and after.

    A job that wrote nothing is no step.
    """
    if not any(step.job for step in history.steps):
        return history
    steps: list[Step] = []
    done = history.done
    for index, step in enumerate(history.steps):
        if step.job:
            changes = {key: _change(*texts) for key, texts in written(step.job).items()}
            step = Step(step.what, step.detail, step.time, changes)
            if not changes:
                done -= index < history.done
                continue
        steps.append(step)
    return History(steps, done)


def _with(history: History, step: Step) -> History:
    steps = [*history.steps[: history.done], step][-MOST_STEPS:]
    size_bytes = 0
    for kept, own in enumerate(reversed(steps)):
        size_bytes += len(msgspec.json.encode(own))
        if size_bytes > MOST_BYTES and kept > 0:
            steps = steps[-kept:]
            break
    return History(steps, len(steps))


def moved(history: History, direction: Direction, captions: Mapping[str, str]) -> tuple[History, Move] | None:
    """The history after one step back or forth, and what that means for `captions`, those of all pictures that are
    there. None where there is no such step.
    """
    step = history.to_undo() if direction == "undo" else history.to_redo()
    if step is None:
        return None
    to_write: dict[str, str] = {}
    problems: list[str] = []
    for key, change in step.changes.items():
        if key not in captions:
            problems.append(f"{key} is not in the dataset any more.")
            continue
        if direction == "redo":
            change = Change(change.start, change.after, change.before, change.digest_after, change.digest_before)
        current = captions[key]
        old = _put_back(change, current)
        if old is None:
            problems.append(f"{key} has another caption by now, which is kept.")
        elif old != current:
            to_write[key] = old
    done = history.done + (-1 if direction == "undo" else 1)
    return History(history.steps, done), Move(step, to_write, problems)


def _change(before: str, after: str) -> Change:
    start = _common_length(before, after)
    tail = _common_length(before[start:][::-1], after[start:][::-1])
    return Change(
        start,
        before[start : len(before) - tail],
        after[start : len(after) - tail],
        _digest(before),
        _digest(after),
    )


def _common_length(first: str, second: str) -> int:
    """How many characters from the start are the same."""
    pairs = zip(first, second, strict=False)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


def _put_back(change: Change, current: str) -> str | None:
    """The caption before the change; None where the current one is neither that one nor the one after."""
    if _digest(current) == change.digest_before:
        return current
    if _digest(current) != change.digest_after:
        return None
    text = current[: change.start] + change.before + current[change.start + len(change.after) :]
    return text if _digest(text) == change.digest_before else None


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=8).hexdigest()
