"""Common tags are left out of what is trained, and the word that calls the LoRA up never is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_train.core.config import TrainSettings
from lora_train.data.captions import has_word, split_tags
from lora_train.data.dataset import Dataset, Picture
from lora_train.data.plan import captions_of, make_planner
from lora_train.data.pruning import trained_captions


def pictures(*captions: str, regularisation: tuple[str, ...] = ()) -> list[Picture]:
    found = [Picture(f"4_cat/{n}.png", "4_cat", "cat", 4, False, text, 64, 64, "") for n, text in enumerate(captions)]
    return found + [
        Picture(f"reg/1_pet/{n}.png", "reg/1_pet", "pet", 1, True, text, 64, 64, "")
        for n, text in enumerate(regularisation)
    ]


def trained(*captions: str, percent: int = 80, trigger: str = "sks", keep: int = 0, **more: Any) -> list[str]:
    return trained_captions(pictures(*captions, **more), prune_percent=percent, trigger_word=trigger, keep_tags=keep)


CAPTIONS = (
    "1girl, blue hair, hat",
    "1girl, Blue Hair, tree",
    "1girl, blue  hair, sea",
    "1girl, red hair, sea",
    "1girl",
)


def test_tags_in_more_than_the_share_are_left_out() -> None:
    """1girl is in 5 of 5 captions, blue hair in 3 of 5 in three spellings: 60 % is not more than 60 %."""
    assert trained(*CAPTIONS) == ["blue hair, hat", "Blue Hair, tree", "blue  hair, sea", "red hair, sea", ""]
    assert trained(*CAPTIONS, percent=60) == trained(*CAPTIONS)
    assert trained(*CAPTIONS, percent=59) == ["hat", "tree", "sea", "red hair, sea", ""]


def test_all_stays_where_nothing_is_asked_for_or_nothing_calls() -> None:
    assert trained(*CAPTIONS, percent=0) == [*CAPTIONS]
    assert trained(*CAPTIONS, percent=100) == [*CAPTIONS], "no tag is in more than all captions"
    mixed = ("a, b", "a, b", "a, b", "a, b", "c")
    assert trained(*mixed, percent=50, trigger="") == [*mixed], "no word would take the meaning of a and b"


def test_the_calling_word_stays() -> None:
    assert trained("sks, dress", "SKS, dress", "dress, photo of sks cat") == ["sks", "SKS", "photo of sks cat"]
    assert trained("cat, dress", "cat, dress", trigger="") == ["cat", "cat"], "cat is the first tag of all"
    assert trained("dress, cat", "dress, cat", trigger="  ") == ["dress", "dress"]


def test_the_first_tags_stay() -> None:
    captions = ("sks, 1girl, dress, hat", "sks, 1girl, dress, tree")
    assert trained(*captions) == ["sks, hat", "sks, tree"]
    assert trained(*captions, keep=1) == ["sks, 1girl, hat", "sks, 1girl, tree"]
    assert trained(*captions, keep=2) == [*captions]
    assert trained("cat, dress, hat", "cat, dress, tree", trigger="", keep=2)[0] == "cat, dress, hat"


def test_regularisation_captions_stay_and_do_not_count() -> None:
    found = trained("dress, a", "dress, b", regularisation=("dress, c", "a", "a", "a"))
    assert found == ["a", "b", "dress, c", "a", "a", "a"]


def test_untouched_captions_keep_every_letter() -> None:
    assert trained("a ,b,, c", "d") == ["a ,b,, c", "d"]


def test_pictures_without_a_caption_are_called_as_before() -> None:
    found = Dataset(Path(), tuple(pictures("dress", "", "", regularisation=("",))), ())
    settings = TrainSettings(prune_common_tags=10, trigger_word="sks")
    assert captions_of(found, settings) == ["", "", "", ""]
    planner = make_planner(found, [(64, 64)] * 4, settings, "My Cat")
    assert [source.caption for source in planner.sources] == ["", "cat", "cat", "pet"]
    views = {view.source: view.caption for batch in planner.batches(0) for view in batch.views}
    assert views[0] == "sks"


TAGS = st.lists(st.sampled_from(["a", "b", "C", "red hat", "sks", "sks cat", "猫"]), max_size=6)


@given(st.lists(TAGS, min_size=1, max_size=8), st.integers(0, 100), st.sampled_from(["", "sks"]), st.integers(0, 3))
def test_what_holds_for_all_captions(tags: list[list[str]], percent: int, trigger: str, keep: int) -> None:
    """Tags are only taken away, in order; what is gone was common, and nothing common is in the rest."""
    captions = [", ".join(own) for own in tags]
    found = trained(*captions, percent=percent, trigger=trigger, keep=keep)
    for before, after in zip(captions, found, strict=True):
        left = iter(split_tags(before))
        assert all(tag in left for tag in split_tags(after))
        assert has_word(after, "sks") == has_word(before, "sks") or not trigger
        gone = set(split_tags(before)) - set(split_tags(after))
        for tag in gone:
            share = sum(tag.lower() in split_tags(caption.lower()) for caption in captions) / len(captions)
            assert 100 * share > percent > 0
    assert trained(*captions, percent=0, trigger=trigger, keep=keep) == captions


@pytest.mark.parametrize("percent", [50, 80])
def test_files_are_not_touched(tmp_path: Path, percent: int) -> None:
    from PIL import Image

    from lora_train.data.dataset import scan_dataset

    for name in "abc":
        Image.new("RGB", (64, 64)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"sks, hat, {name}", encoding="utf-8")
    settings = TrainSettings(prune_common_tags=percent, trigger_word="sks")
    dataset = scan_dataset(tmp_path)
    assert captions_of(dataset, settings) == ["sks, a", "sks, b", "sks, c"]
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "sks, hat, a"
    assert scan_dataset(tmp_path) == dataset
