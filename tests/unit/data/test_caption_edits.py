"""Edits of captions: what each changes, what it leaves alone, and what holds for all of them."""

from __future__ import annotations

import unicodedata
from typing import Any

import msgspec
import pytest

from lora_train.core.errors import ConfigError
from lora_train.data.caption_edits import (
    AddTags,
    AppendText,
    Context,
    DedupeTags,
    Operation,
    PrependText,
    RemoveTags,
    Replace,
    SetText,
    SortTags,
    TriggerFirst,
    apply,
    clean_caption,
    title,
)
from lora_train.data.caption_filters import matching, parse_filter
from lora_train.data.caption_history import History, moved, with_step
from lora_train.data.caption_tags import TagCount, common_tags, count_tags, one_off_tags, tag_key
from lora_train.data.captions import caption_text, split_tags

CONTEXT = Context("sks", {"cat": 3, "dog": 1, "猫": 2})
SENTENCE = "A cat, red and white, sits in the sun. It sleeps."


def edited(operation: Operation, caption: str, context: Context = CONTEXT) -> str:
    """The caption after an edit; the same where it is not among the changed ones."""
    return apply(operation, {"a": caption}, context).get("a", caption)


# --- each edit ---


@pytest.mark.parametrize(
    ("operation", "before", "after"),
    [
        (AddTags("Solo, smile"), "1girl, SOLO", "1girl, SOLO, smile"),
        (AddTags("smile, Smile"), "", "smile"),
        (AddTags("x, y", "start"), "sks, a", "x, y, sks, a"),
        (AddTags("x, y", "after trigger"), "a, SKS, b", "a, SKS, x, y, b"),
        (AddTags("x", "after trigger"), "a, b", "x, a, b"),
        (AddTags("in the sun"), SENTENCE, f"{SENTENCE}, in the sun"),
        (AddTags("a"), "a,b ,  c", "a,b ,  c"),  # nothing to do: left as it is, to the last blank
        (AddTags("d"), "a,b ,  c", "a, b, c, d"),
        (RemoveTags("B, 猫"), "a, b, 猫, c, b", "a, c"),
        (RemoveTags("cat"), "cat", ""),
        (RemoveTags("cat"), SENTENCE, SENTENCE),
        (RemoveTags("cafe\u0301"), "Café, x", "x"),
        (Replace("cat", "kitten"), "a, Cat, b", "a, kitten, b"),
        (Replace("cat, dog", "animal"), "dog, cat, x", "animal, x"),
        (Replace("cat", "a, b"), "cat, B, x", "a, B, x"),
        (Replace("cat", "Cat"), "cat, x", "Cat, x"),
        (Replace("cat", "dog"), "dog, x, cat", "dog, x"),
        (Replace("cat"), "a, cat", "a"),
        (Replace("a cat", "a dog", "text"), SENTENCE, SENTENCE.replace("A cat", "a dog")),
        (Replace("(", r"\1", "text"), "x (y)", r"x \1y)"),
        (Replace(r"^(\w+) hair$", r"hair (\1)", "tag expression"), "Long hair, x", "hair (Long), x"),
        (Replace(r"(blue|red) (eyes)", r"\2", "tag expression"), "blue eyes, x, red eyes", "eyes, x"),
        (Replace(r".*cat.*", "", "tag expression"), "a cat, x", "x"),
        (Replace(r"red and (\w+), ", r"\1, ", "caption expression"), SENTENCE, SENTENCE.replace("red and ", "")),
        (PrependText("a photo of"), "cat", "a photo of, cat"),
        (PrependText(" a photo of ", " "), "cat", "a photo of cat"),
        (PrependText("x"), "", "x"),
        (AppendText("Nice.", " "), SENTENCE, f"{SENTENCE} Nice."),
        (AppendText("nice"), "cat", "cat, nice"),
        (SortTags("alphabet"), "b, A, sks, 猫, c", "sks, A, b, c, 猫"),
        (SortTags("frequency"), "b, dog, 猫, Cat, a", "Cat, 猫, dog, a, b"),
        (SortTags("length"), "ccc, bb, aa, d", "d, aa, bb, ccc"),
        (SortTags(), SENTENCE, SENTENCE),
        (DedupeTags(), "a, b, A, c, B", "a, b, c"),
        (DedupeTags(), "a,b", "a,b"),
        (TriggerFirst(), "a, Sks, b", "sks, a, b"),
        (TriggerFirst(), "a", "sks, a"),
        (TriggerFirst(), "photo of sks cat, x", "photo of sks cat, x"),
        (TriggerFirst(), "sks,a", "sks,a"),
        (TriggerFirst(), "", "sks"),
        (SetText(" 白い\n 猫\x00 "), "x", "白い 猫"),
        (SetText(""), "x", ""),
    ],
)
def test_edit(operation: Operation, before: str, after: str) -> None:
    assert edited(operation, before) == after
    assert (apply(operation, {"a": before}, CONTEXT) == {}) == (before == after), "changed ones only"
    kind = type(operation)
    assert msgspec.json.decode(msgspec.json.encode(operation), type=Operation) == operation
    assert msgspec.to_builtins(operation)["kind"] == kind.__struct_config__.tag
    assert title(operation)[0]


@pytest.mark.parametrize(
    ("operation", "told"),
    [
        (AddTags(" , "), "at least one tag"),
        (RemoveTags(""), "at least one tag"),
        (Replace(" ,", "x"), "what is to be replaced"),
        (Replace("", "x", "text"), "what is to be replaced"),
        (Replace("", "x", "tag expression"), "what is to be replaced"),
        (Replace("a(", "x", "caption expression"), "character 2"),
        (PrependText(" "), "the text to add"),
        (AppendText("\x00"), "the text to add"),
        (TriggerFirst(), "no trigger word"),
        (SetText("x" * 5001), "longer than 5,000"),
        (Replace("a", "b" * 1000, "text"), "20,000 characters"),
    ],
)
def test_what_can_not_be_done_is_told(operation: Operation, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as error:
        apply(operation, {"a": "a " * 1000}, Context())
    assert all(problem.endswith(".") and problem[0].isupper() for problem in error.value.problems)


def test_a_caption_that_is_long_already_may_become_shorter() -> None:
    assert edited(RemoveTags("b"), "a, " * 10_000 + "b") == ", ".join(["a"] * 10_000)


def test_unknown_edits_are_refused() -> None:
    for wrong in ({"kind": "burn"}, {"kind": "add"}, {"kind": "add", "tags": "a", "tag": "b"}, {"tags": "a"}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, Operation)


def test_cleaned_text_is_read_as_it_was_written() -> None:
    for text in ("\ufeffa", "a\x00b", "x\u3000y\u2028z\x1c", "\ud83da", "\x85猫", "ｶﾒﾗ", "é", "\ufffe", "\x1fa\x07b"):
        cleaned = clean_caption(text)
        assert caption_text(cleaned.encode("utf-8")) == cleaned


# --- tags of all captions ---


def test_tags_are_counted_once_a_picture_in_any_letter_case() -> None:
    counts = count_tags(["Cat, cat, dog", "cat, 犬", "CAT, cafe\u0301", "cat, Café, bird", "", "cat"])
    assert counts == [
        TagCount("cat", 5),
        TagCount("Café", 2),
        TagCount("bird", 1),
        TagCount("dog", 1),
        TagCount("犬", 1),
    ]
    assert common_tags(counts, 6) == ["cat"]
    assert common_tags([TagCount("x", 4)], 5) == [], "80 % is not more than 80 %"
    assert one_off_tags(counts) == ["bird", "dog", "犬"]
    assert count_tags([]) == []


# --- what holds for all ---

hypothesis = pytest.importorskip("hypothesis")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

LETTERS = "aAbB ,.é猫\u0301ß\u3000-/*\"'\\(1"
TEXT = st.text(alphabet=LETTERS, max_size=30)
WORD = st.sampled_from(["cat", "Cat", "dog", "猫", "sks", "a b", "straße", "STRASSE"])
CAPTION = st.one_of(TEXT.map(clean_caption), st.lists(WORD, max_size=6).map(", ".join))
CAPTIONS = st.dictionaries(st.text(min_size=1, max_size=5), CAPTION, max_size=5)
TYPED = st.one_of(WORD, st.lists(WORD, min_size=1, max_size=3).map(", ".join))
OPERATION = st.one_of(
    st.builds(AddTags, TYPED, st.sampled_from(["start", "end", "after trigger"])),
    st.builds(RemoveTags, TYPED),
    st.builds(Replace, TYPED, TYPED, st.sampled_from(["tag", "text"])),
    st.builds(PrependText, TYPED, st.sampled_from([", ", " "])),
    st.builds(AppendText, TYPED, st.sampled_from([", ", " "])),
    st.builds(SortTags, st.sampled_from(["alphabet", "frequency", "length"])),
    st.just(DedupeTags()),
    st.just(TriggerFirst()),
    st.builds(SetText, TYPED),
)
many = settings(database=None, deadline=None, max_examples=200)


def letters(text: str) -> set[str]:
    return set(unicodedata.normalize("NFC", text).casefold()) - set(" ,")


@many
@given(CAPTIONS, OPERATION)
def test_undo_of_an_edit_is_identity(captions: dict[str, str], operation: Any) -> None:
    changed = apply(operation, captions, CONTEXT)
    after = captions | changed
    history = with_step(History(), *title(operation), captions, changed)
    undone = moved(history, "undo", after)
    assert undone is not None
    assert undone[1].problems == []
    assert after | undone[1].captions == captions
    redone = moved(undone[0], "redo", captions)
    assert redone is not None
    assert captions | redone[1].captions == after


@many
@given(CAPTIONS, OPERATION)
def test_no_edit_invents_text(captions: dict[str, str], operation: Any) -> None:
    typed = "".join(value for value in msgspec.structs.asdict(operation).values() if isinstance(value, str))
    for key, after in apply(operation, captions, CONTEXT).items():
        assert after != captions[key]
        assert after == clean_caption(after)
        assert letters(after) <= letters(captions[key]) | letters(typed) | letters(CONTEXT.trigger_word)


@many
@given(CAPTION)
def test_dedupe_and_sort_twice_is_once(caption: str) -> None:
    for operation in (DedupeTags(), SortTags("alphabet"), SortTags("frequency"), SortTags("length"), TriggerFirst()):
        once = edited(operation, caption)
        assert edited(operation, once) == once
    keys = [tag_key(tag) for tag in split_tags(caption)]
    deduped = [tag_key(tag) for tag in split_tags(edited(DedupeTags(), caption))]
    assert deduped == list(dict.fromkeys(keys))
    assert sorted(keys) == sorted(map(tag_key, split_tags(edited(SortTags(), caption))))


@many
@given(CAPTIONS, st.text(alphabet=LETTERS.replace('"', ""), max_size=5).filter(str.strip), st.booleans())
def test_a_filter_and_its_negation_part_the_captions(captions: dict[str, str], text: str, is_text: bool) -> None:
    term = f"*{text.replace(',', '')}x*" if is_text else f'"{text}"'
    yes, no = (matching(captions, parse_filter(sign + term)) for sign in ("", "-"))
    assert sorted(yes + no) == sorted(captions)
    assert not set(yes) & set(no)


@many
@given(CAPTIONS, WORD)
def test_a_tag_that_was_removed_is_found_nowhere(captions: dict[str, str], tag: str) -> None:
    wanted = parse_filter(f'"{tag}"')
    found = matching(captions, wanted)
    changed = apply(RemoveTags(tag), captions, CONTEXT)
    assert set(changed) == set(found), "the filter and the edit mean the same tags"
    assert matching(captions | changed, wanted) == []
