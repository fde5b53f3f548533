"""Prompt attention as Automatic1111 reads it. The numbers are what its v1.10.1 gives (run beside this, not copied)."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_train.data.prompts import Part, read_attention, unread_syntax, weighted_chunks, without_tags

CAT, COMMA, DOG = 2368, 267, 1929
"""Ids of CLIP's vocabulary."""


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(a:1.3)[b]", [("a", 1.3), ("b", 1 / 1.1)]),
        ("((a)) [[b]]", [("a", 1.21), (" ", 1.0), ("b", 1 / 1.21)]),
        ("((a:1.5) b)", [("a", 1.65), (" b", 1.1)]),
        ("[(a)]", [("a", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        ("[weak", [("weak", 1 / 1.1)]),
        ("a) b]", [("a) b]", 1.0)]),
        ("a:1.2) b", [("a:1.2) b", 1.0)]),
        ("(a:1.2", [("a:1.2", 1.1)]),
        (r"\(a\) \[b\] \\", [(r"(a) [b] " + "\\", 1.0)]),
        (r"(a \(b\):1.4)", [("a (b)", 1.4)]),
        ("(a: 1.5 )", [("a", 1.5)]),
        ("(a:+.5)(b:-1)", [("a", 0.5), ("b", -1.0)]),
        ("(a)(b)", [("ab", 1.1)]),
        ("(桜:1.3), кот (🐈)", [("桜", 1.3), (", кот ", 1.0), ("🐈", 1.1)]),
        ("", [("", 1.0)]),
        ("()", [("", 1.0)]),
    ],
)
def test_attention(prompt: str, parts: list[tuple[str, float]]) -> None:
    found = read_attention(prompt)
    assert [part.text for part in found] == [text for text, _ in parts]
    assert [part.weight for part in found] == pytest.approx([weight for _, weight in parts])


def test_breaks() -> None:
    assert read_attention("a\n BREAK b") == [Part("a", 1.0), Part("BREAK", -1.0, is_break=True), Part("b", 1.0)]
    assert not any(part.is_break for part in read_attention("BREAKFAST, outBREAK, break"))
    # Brackets multiply it like a word, and then it is one.
    assert read_attention("(a BREAK b:1.2)") == [Part("a", 1.2), Part("BREAK", -1.2), Part("b", 1.2)]


def test_a_weight_that_is_no_number_is_text() -> None:
    assert "".join(part.text for part in read_attention("(a:1.2.3) b")) == "a:1.2.3) b"


def test_brackets_of_two_kinds_may_overlap() -> None:
    assert [part.text for part in read_attention("(a[b)c]")] == ["a", "b", "c"]
    assert [part.weight for part in read_attention("(a[b)c]")] == pytest.approx([1.1, 1.0, 1 / 1.1])


def test_a_long_prompt_is_read_to_its_end() -> None:
    """Time grows by its length: rescanning what brackets hold would take minutes here."""
    depth = 50_000
    parts = read_attention("(a" * depth + ":0.5)" + ")" * (depth - 1) + "b")
    assert sum(part.text.count("a") for part in parts) == depth
    assert parts[0].weight == pytest.approx(1.1)
    assert parts[-1] == Part("b", 1.0)


@given(st.text(alphabet="ab ,()[]:\\12.-", max_size=30))
def test_any_text_can_be_read(prompt: str) -> None:
    """Nothing is lost but syntax: the letters come out in their order."""
    parts = read_attention(prompt)
    assert [char for part in parts for char in part.text if char in "ab"] == [char for char in prompt if char in "ab"]
    assert all(one.weight != other.weight for one, other in pairwise(parts))


@given(st.text(alphabet=st.characters(exclude_characters="()[]\\:", exclude_categories=["Cs"]), min_size=1))
def test_text_without_signs_is_one_part(prompt: str) -> None:
    if "BREAK" not in prompt:
        assert read_attention(prompt) == [Part(prompt, 1.0)]


def chunk_sizes(*parts: tuple[list[int], float] | None) -> list[int]:
    """None is a BREAK."""
    given = [Part("BREAK", -1.0, is_break=True) if part is None else Part("", part[1]) for part in parts]
    ids = [[] if part is None else part[0] for part in parts]
    return [len(chunk.ids) for chunk in weighted_chunks(given, ids, COMMA)]


def test_chunks() -> None:
    """Sizes as Automatic1111's tokenize_line gives them for the same ids."""
    assert chunk_sizes(([], 1.0)) == [0]
    assert chunk_sizes(([CAT] * 80, 1.0)) == [75, 5]
    assert chunk_sizes(([CAT], 1.0), None, ([DOG, CAT], 1.0)) == [1, 2]
    assert chunk_sizes(([], 1.0), None, ([CAT], 1.0)) == [0, 1]
    assert chunk_sizes(([CAT], 1.0), None, ([], 1.0)) == [1]
    assert chunk_sizes(([CAT], 1.0), None, ([], 1.0), None, ([DOG], 1.0)) == [1, 0, 1]
    # A chunk that fills up is cut behind its last comma, whatever parts its tokens are of; a BREAK forgets the comma.
    assert chunk_sizes(([CAT] * 60 + [COMMA], 1.0), ([CAT], 1.4), ([CAT] * 30, 1.0), None, ([DOG], 1.0)) == [61, 31, 1]
    assert chunk_sizes(([CAT] * 75, 1.0), None, ([DOG], 1.0)) == [75, 1]


def test_every_token_keeps_its_weight() -> None:
    parts = [Part("", 1.0), Part("", 1.4), Part("", 0.9)]
    ids = [[CAT] * 60 + [COMMA], [CAT] * 10, [DOG] * 10]
    first, second = weighted_chunks(parts, ids, COMMA)
    assert first.weights == [1.0] * 61
    assert second.ids == [CAT] * 10 + [DOG] * 10
    assert second.weights == [1.4] * 10 + [0.9] * 10


def test_tags_of_networks() -> None:
    assert without_tags("a <lora:x:0.8>, b<hypernet:y:1><lora:x y:1:0.5>") == "a , b"
    assert without_tags("a < b > c, <3, <lora>") == "a < b > c, <3, <lora>"


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a [cat:dog:0.5] b", "[cat:dog:0.5]"),
        ("[cat::10]", "[cat::10]"),
        ("[a|b]", "[a|b]"),
        ("a AND b", "AND"),
        ("[weak] (strong:1.2) and \\[a|b\\] SAND", ""),
    ],
)
def test_what_only_hosts_draw(prompt: str, found: str) -> None:
    assert unread_syntax(prompt) == found
