"""From scores to tags: thresholds, categories, order, spelling, and what is never written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is no part of the hosts' libraries")

from hypothesis import given
from hypothesis import strategies as st

from lora_train.caption.tags import CHARACTER, GENERAL, RATING, Tag, read_tags, tags_of, written
from lora_train.core.caption_settings import CaptionSettings
from lora_train.core.errors import ModelError

TAGS = [
    *(Tag("general", RATING), Tag("sensitive", RATING), Tag("explicit", RATING)),
    *(Tag("1girl", GENERAL), Tag("long_hair", GENERAL), Tag(">_<", GENERAL), Tag("grey_background", GENERAL)),
    *(Tag("saber_(fate)", CHARACTER), Tag("emiya_(archer)", CHARACTER), Tag("fate_(series)", 3)),
]
SCORES = [0.2, 0.7, 0.1, 0.9, 0.5, 0.4, 0.34, 0.95, 0.8, 0.99]
"""In the order of TAGS; 0.34 and 0.8 are just below the thresholds."""

FACES = (
    *("0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9", ">_o", "@_@"),
    *("^_^", "o_o", "u_u", "x_x", "|_|", "||_||", ";_;", "t_t"),
)
"""Tags of Danbooru that are drawn, not read."""


def tags(**values: Any) -> list[str]:
    return tags_of(SCORES, TAGS, CaptionSettings(**values))


def test_as_it_comes() -> None:
    assert tags() == ["saber (fate)", "1girl", "long hair", ">_<"]


def test_the_model_s_order() -> None:
    assert tags(sort_by_score=False) == ["1girl", "long hair", ">_<", "saber (fate)"]


def test_thresholds_are_reached_by_equal_scores() -> None:
    assert tags(wd14_threshold=0.34)[-1] == "grey background"
    assert tags(wd14_threshold=0.35)[-1] == ">_<"
    assert "emiya (archer)" in tags(wd14_character_threshold=0.8)
    assert "saber (fate)" not in tags(wd14_character_threshold=0.96)
    assert tags(wd14_threshold=1, wd14_character_threshold=1) == []


def test_the_likeliest_rating_comes_last() -> None:
    assert tags(wd14_rating=True) == [*tags(), "sensitive"]
    assert tags(wd14_rating=True, sort_by_score=False)[-1] == "sensitive"
    assert tags(wd14_rating=True, excluded_tags="Sensitive")[-1] == "general"
    assert tags_of([0.9], [Tag("solo", GENERAL)], CaptionSettings(wd14_rating=True)) == ["solo"]


def test_other_categories_are_left_out() -> None:
    assert not any("series" in tag for tag in tags(wd14_threshold=0, wd14_character_threshold=0))


def test_most_tags() -> None:
    assert tags(max_tags=2) == ["saber (fate)", "1girl"]
    assert tags(max_tags=2, wd14_rating=True) == ["saber (fate)", "sensitive"]
    assert tags(max_tags=1, wd14_rating=True) == ["sensitive"]
    assert tags(max_tags=0) == tags(max_tags=1000) == tags()


@pytest.mark.parametrize("excluded", ["long_hair, >_<", " Long Hair ,,> <", "LONG_HAIR,>_<,unheard of"])
def test_excluded_in_any_spelling(excluded: str) -> None:
    assert tags(excluded_tags=excluded) == ["saber (fate)", "1girl"]
    assert tags(excluded_tags=excluded, underscores_to_blanks=False) == ["saber_(fate)", "1girl"]


def test_excluded_tags_are_whole() -> None:
    assert tags(excluded_tags="hair, long, saber") == tags()


@pytest.mark.parametrize("face", FACES)
def test_faces_keep_their_underscore(face: str) -> None:
    assert written(face, True) == written(face, False) == face


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("long_hair", "long hair"),
        ("hatsune_miku", "hatsune miku"),
        ("d.va_(overwatch)", "d.va (overwatch)"),
        ("n_(pokemon)", "n (pokemon)"),
        ('don\'t_say_"lazy"', 'don\'t say "lazy"'),
        ("初音_ミク", "初音 ミク"),
        ("2b_(nier)", "2b (nier)"),
    ],
)
def test_words_lose_theirs_and_brackets_are_not_escaped(name: str, text: str) -> None:
    assert written(name, True) == text
    assert written(name, False) == name


@st.composite
def scored(draw: st.DrawFn) -> tuple[list[float], list[Tag]]:
    names = draw(st.lists(st.from_regex(r"[a-z0-9_()]{1,12}", fullmatch=True), unique=True, max_size=30))
    categories = st.sampled_from([GENERAL, CHARACTER, RATING, 3, 5])
    tags = [Tag(name, draw(categories)) for name in names]
    return [draw(st.floats(0, 1)) for _ in tags], tags


@given(
    scored(),
    st.floats(0, 1),
    st.floats(0, 1),
    st.booleans(),
    st.booleans(),
    st.integers(0, 8),
)
def test_rules_hold_for_any_scores(
    scored: tuple[list[float], list[Tag]], general: float, character: float, by_score: bool, rating: bool, most: int
) -> None:
    scores, given_tags = scored
    settings = CaptionSettings(
        wd14_threshold=general,
        wd14_character_threshold=character,
        sort_by_score=by_score,
        wd14_rating=rating,
        max_tags=most,
        underscores_to_blanks=False,
    )
    found = tags_of(scores, given_tags, settings)
    of_name = {tag.name: (score, tag, place) for place, (score, tag) in enumerate(zip(scores, given_tags, strict=True))}
    assert len(set(found)) == len(found)
    assert not most or len(found) <= most
    ratings = [name for name in found if of_name[name][1].category == RATING]
    others = [name for name in found if name not in ratings]
    assert found == others + ratings
    best = max((score for score, tag in zip(scores, given_tags, strict=True) if tag.category == RATING), default=None)
    assert [of_name[name][0] for name in ratings] == ([best] if rating and best is not None else [])
    limits = {GENERAL: general, CHARACTER: character}
    assert all(of_name[name][0] >= limits[of_name[name][1].category] for name in others)
    key = (lambda name: (-of_name[name][0], of_name[name][2])) if by_score else (lambda name: of_name[name][2])
    assert others == sorted(others, key=key)
    reaching = sum(tag.category in limits and score >= limits[tag.category] for score, tag, _ in of_name.values())
    assert len(others) == (min(reaching, most - len(ratings)) if most else reaching)


def test_another_number_of_scores_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="zip"):
        tags_of([0.5], TAGS, CaptionSettings())


# --- the list of tags ---


def test_the_list_is_read_as_models_bring_it(tmp_path: Path) -> None:
    path = tmp_path / "selected_tags.csv"
    path.write_bytes(
        "\ufefftag_id,name,category,count\r\n9999999,general,9,807858\r\n470575,1girl,0,4225150\r\n"
        '1,"say_""hi"",_again",0,12\r\n15080,初音ミク,4,2\r\n'.encode()
    )
    assert read_tags(path) == [
        *(Tag("general", RATING), Tag("1girl", GENERAL)),
        *(Tag('say_"hi",_again', GENERAL), Tag("初音ミク", CHARACTER)),
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"tag,kind\nsolo,0\n",
        b"tag_id,name,category\n1,solo,general\n",
        b"tag_id,name,category\n1,solo\n",
        b"\xff\xfe\x00",
    ],
)
def test_another_table_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "selected_tags.csv"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"selected_tags\.csv is not the list of a tagger's tags") as error:
        read_tags(path)
    assert "model.onnx" in error.value.hint


def test_a_missing_list_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="can't be read"):
        read_tags(tmp_path / "selected_tags.csv")
