"""Filters as a person types them."""

from __future__ import annotations

import pytest

from lora_train.core.errors import ConfigError
from lora_train.data.caption_filters import Filter, FilterMode, Term, matches, matching, parse_filter

CAPTIONS = {
    "a": "1girl, solo, long hair",
    "b": "1girl, 2boys, Long  Hair",
    "c": "a photo of a cat, sitting, in the sun",
    "d": "",
    "e": "白い猫, CAFÉ",
}


@pytest.mark.parametrize(
    ("text", "mode", "expected"),
    [
        ("", "and", "abcde"),
        (" , ,", "and", "abcde"),
        ("-", "and", "abcde"),
        ("1girl", "and", "ab"),
        ("girl", "and", ""),
        ("LONG HAIR", "and", "ab"),
        ('1girl, -solo, "long hair"', "and", "b"),
        ("solo, 2boys", "and", ""),
        ("solo, 2boys", "or", "ab"),
        ("solo, 2boys, -2boys", "or", "a"),
        ("-solo", "or", "bcde"),
        ("- solo", "and", "bcde"),
        ("*CAT*", "and", "c"),
        ("*girl, so*", "and", ""),  # a comma ends a term: two tags that nobody has
        ("-*i*", "and", "de"),
        ("/^a|猫/", "and", "ce"),
        ("/[,] {1,2}s/, -*photo*", "and", "a"),
        (r"-/\d\w+/", "and", "cde"),
        ('""', "and", "d"),
        ('-""', "and", "abce"),
        ("café", "and", "e"),
        ("cafe\u0301", "and", "e"),
        ("白い猫", "and", "e"),
    ],
)
def test_filter(text: str, mode: FilterMode, expected: str) -> None:
    assert "".join(matching(CAPTIONS, parse_filter(text, mode))) == expected
    assert "".join(key for key, caption in CAPTIONS.items() if matches(caption, parse_filter(text, mode))) == expected


def test_signs_in_quotation_marks() -> None:
    assert parse_filter('"-_-", "a, b", "/x/", "*y*", :/, 5"') == Filter(
        tuple(Term("tag", text) for text in ("-_-", "a, b", "/x/", "*y*", ":/", '5"'))
    )
    assert parse_filter(r"/a\/b,c/, -/x/") == Filter(
        (Term("expression", r"a\/b,c"), Term("expression", "x", is_wanted=False))
    )


@pytest.mark.parametrize("text", ['"long hair', 'x, "long" hair', "/abc", "-/a/b, c"])
def test_what_is_not_closed_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="must end with it"):
        parse_filter(text)


def test_a_wrong_expression_is_told() -> None:
    with pytest.raises(ConfigError, match="at character 1"):
        matching(CAPTIONS, parse_filter("/(/"))
