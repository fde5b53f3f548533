"""Which of several processes one is."""

from __future__ import annotations

import pytest

from lora_train.core.errors import ConfigError
from lora_train.core.places import Place, place_for

LAUNCHED = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
"""Of the second process on the second of two machines, as torchrun tells it."""


def test_from_the_environment() -> None:
    place = place_for(1, LAUNCHED)
    assert place == Place(3, 4, 1, 2)
    assert not place.is_first


def test_as_asked_for() -> None:
    assert place_for(2, {}) == Place(0, 2, 0, 2)


@pytest.mark.parametrize("environ", [{}, {**LAUNCHED, "WORLD_SIZE": "1"}, {"WORLD_SIZE": "4"}, {"RANK": "0"}])
def test_alone(environ: dict[str, str]) -> None:
    assert place_for(1, environ) is None


def test_what_makes_no_sense() -> None:
    with pytest.raises(ConfigError, match="0 is less than 1"):
        place_for(0, {})
    with pytest.raises(ConfigError, match="has started 4 already; leave --processes out"):
        place_for(2, LAUNCHED)
