"""What several pages ask for is made once, a failure that passes is not remembered, and old things are forgotten."""

from __future__ import annotations

from lora_train.app.remembered import Remembered, RememberedByKey


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


def test_what_was_asked_for_last_is_kept_by_its_key() -> None:
    remembered: RememberedByKey[int, str] = RememberedByKey()
    for number in range(24):
        remembered.put(number, str(number))
    assert remembered.of(0) == "0"
    remembered.put(1, "another")
    remembered.put(24, "one too many")
    assert remembered.of(2) is None
    assert [remembered.of(number) for number in (0, 1, 3, 24)] == ["0", "another", "3", "one too many"]
