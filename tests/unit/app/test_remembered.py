"""What several pages ask for is made once, and a failure that passes is not remembered."""

from __future__ import annotations

from lora_train.app.remembered import Remembered


def test_made_once_for_a_source_and_a_key() -> None:
    remembered: Remembered[list[int]] = Remembered()
    source, other = [1], [1]
    first = remembered.of(source, "key", lambda: [1])
    assert remembered.of(source, "key", lambda: [2]) is first
    assert remembered.of(source, "other key", lambda: [3]) == [3]
    assert remembered.of(other, "key", lambda: [4]) == [4], "equal, but another one"


def test_a_failure_is_tried_again() -> None:
    remembered: Remembered[str] = Remembered()
    source = object()
    assert remembered.of(source, 1, lambda: "failed", lambda made: made != "failed") == "failed"
    assert remembered.of(source, 1, lambda: "made", lambda made: made != "failed") == "made"
