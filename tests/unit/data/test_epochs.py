"""The plan of epochs: step counts worked by hand, and what every view is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lora_train.core.settings import parse_settings
from lora_train.data.dataset import Dataset, Picture
from lora_train.data.epochs import Batch, CaptionRules, EpochPlanner, Source, View, parts, total_steps
from lora_train.data.plan import make_planner, place_in_buckets

SQUARE, WIDE, TALL = (64, 64), (96, 64), (64, 96)

# Five pictures seen twice in one bucket, three seen once in another: 10 + 3 views an epoch.
TRAINING = [Source(SQUARE, 2, f"square {n}") for n in range(5)] + [Source(WIDE, 1, f"wide {n}") for n in range(3)]
# A pool of five regularisation views: two wide ones, and a tall one three times.
REGULARISATION = [Source(WIDE, 1, f"reg {n}", is_regularisation=True) for n in range(2)] + [
    Source(TALL, 3, "reg tall", is_regularisation=True)
]


def planner(sources: list[Source], batch_size: int = 4, seed: int = 1, **values: Any) -> EpochPlanner:
    return EpochPlanner(sources, batch_size=batch_size, seed=seed, **values)


def views_of(batches: list[Batch]) -> list[View]:
    return [view for batch in batches for view in batch.views]


# --- how many ---


def test_batches_and_steps_by_hand() -> None:
    """In fours, 10 and 3 views are 3 + 1 batches; in threes these are 2 steps."""
    plan = planner(TRAINING)
    batches = plan.batches(0)
    sizes = Counter((batch.bucket, len(batch.views)) for batch in batches)
    assert sizes == {(SQUARE, 4): 2, (SQUARE, 2): 1, (WIDE, 3): 1}
    assert plan.batch_count(0) == len(batches) == 4
    assert total_steps(plan, epochs=3, gradient_accumulation_steps=3) == 3 * 2
    assert total_steps(plan, epochs=3, gradient_accumulation_steps=1) == 3 * 4
    assert total_steps(plan, epochs=3, gradient_accumulation_steps=100) == 3


def test_batches_with_regularisation_by_hand() -> None:
    """As many regularisation views as training views: 13 of a pool of 5, going on where the last epoch ended.

    Epoch 0 takes 0 1 2 3 4 0 1 2 3 4 0 1 2: six wide and seven tall ones; with 10 square and 3 wide views of training
    that is 3 + ceil(9 / 4) + 2 = 8 batches. Epoch 1 takes 3 4 0 1 2 3 4 0 1 2 3 4 0: five wide and eight tall ones,
    3 + 2 + 2 = 7 batches.
    """
    plan = planner(TRAINING + REGULARISATION)
    assert [plan.batch_count(epoch) for epoch in (0, 1)] == [8, 7]
    assert [len(plan.batches(epoch)) for epoch in (0, 1)] == [8, 7]
    assert total_steps(plan, epochs=2, gradient_accumulation_steps=2) == 4 + 4
    counts = Counter(view.source for view in views_of(plan.batches(0)))
    assert [counts[source] for source in range(8, 11)] == [3, 3, 7]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_every_picture_is_seen_as_often_as_it_repeats(batch_size: int) -> None:
    plan = planner(TRAINING + REGULARISATION, batch_size)
    for epoch in range(4):
        batches = plan.batches(epoch)
        assert len(batches) == plan.batch_count(epoch)
        counts = Counter(view.source for view in views_of(batches))
        assert [counts[index] for index in range(8)] == [2] * 5 + [1] * 3
        assert sum(counts[index] for index in range(8, 11)) == 13
        for batch in batches:
            assert 1 <= len(batch.views) <= batch_size
            assert {plan.sources[view.source].bucket for view in batch.views} == {batch.bucket}


def test_all_regularisation_pictures_get_their_turn() -> None:
    """More of them than training views: 2 of 7 in each epoch, all 7 twice in 7 epochs."""
    sources = [Source(SQUARE, 1, "a"), Source(SQUARE, 1, "b")]
    sources += [Source(SQUARE, 1, f"reg {n}", is_regularisation=True) for n in range(7)]
    plan = planner(sources)
    counts = Counter(view.source for epoch in range(7) for view in views_of(plan.batches(epoch)))
    assert [counts[index] for index in range(9)] == [7, 7] + [2] * 7


# --- in which order ---


def test_plan_is_a_function_of_seed_and_epoch() -> None:
    """Whatever was planned before, and by whichever planner."""
    first, second = planner(TRAINING, flip=True), planner(TRAINING, flip=True)
    wanted = [first.batches(epoch) for epoch in range(4)]
    assert [second.batches(epoch) for epoch in (3, 1, 0, 2, 0)] == [wanted[epoch] for epoch in (3, 1, 0, 2, 0)]
    orders = {tuple(view.source for view in views_of(batches)) for batches in wanted}
    assert len(orders) == 4
    assert planner(TRAINING, seed=2).batches(0) != planner(TRAINING, seed=1).batches(0)


def test_positions_name_the_views_of_an_epoch() -> None:
    views = views_of(planner(TRAINING).batches(2))
    assert [view.position for view in views] == list(range(13))
    assert {view.epoch for view in views} == {2}


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_parts_share_a_batch_out(count: int) -> None:
    """Of thirteen views in fours there are also batches of two and three."""
    for batch in planner(TRAINING).batches(0):
        shares = parts(batch, count)
        assert views_of(shares) == list(batch.views)
        sizes = [len(share.views) for share in shares]
        assert sizes == sorted(sizes, reverse=True)
        assert max(sizes) - min(sizes) <= 1
        for share in shares:
            assert share.whole[share.first : share.first + len(share.views)] == share.views


def test_a_part_can_be_parted_again() -> None:
    batch = planner(TRAINING).batches(0)[0]
    second = parts(batch, 2)[1]
    assert [share.first for share in parts(second, 2)] == [2, 3]
    assert {share.whole for share in parts(second, 2)} == {batch.views}


def test_buckets_are_mixed() -> None:
    """Neither all of one bucket first nor partial batches always last."""
    plan = planner([Source(SQUARE, 1, "")] * 13 + [Source(WIDE, 1, "")] * 13)
    orders = {tuple(batch.bucket for batch in plan.batches(epoch)) for epoch in range(10)}
    assert len(orders) > 5
    places = {[len(batch.views) for batch in plan.batches(epoch)].index(1) for epoch in range(20)}
    assert len(places) > 3


# --- flips and captions ---


def test_about_half_of_the_views_are_flipped() -> None:
    """Of 2000 fair draws, 900 to 1100 is 4.5 standard deviations on either side."""
    sources = [Source(SQUARE, 200, "a")] * 10
    assert not any(view.flip for view in views_of(planner(sources).batches(0)))
    plan = planner(sources, flip=True)
    flips = [view.flip for view in views_of(plan.batches(0))]
    assert 900 < sum(flips) < 1100
    assert flips != [view.flip for view in views_of(plan.batches(1))]


def captions_of(source: Source, repeats: int = 400, **rules: Any) -> Counter[str]:
    many = Source(source.bucket, repeats, source.caption, is_regularisation=source.is_regularisation)
    sources = [many] if not source.is_regularisation else [Source(SQUARE, repeats, ""), many]
    plan = planner(sources, rules=CaptionRules(**rules))
    views = [view for view in views_of(plan.batches(0)) if view.source == len(sources) - 1]
    return Counter(view.caption for view in views)


def test_captions_without_rules() -> None:
    assert captions_of(Source(SQUARE, 1, "a, b,c")) == {"a, b,c": 400}


def test_shuffle_keeps_the_first_tags() -> None:
    """Three tags that move have six orders, each about 400 / 6 times (7.5 standard deviations allowed)."""
    counts = captions_of(Source(SQUARE, 1, "first, x, y, z"), shuffle=True, keep_tags=1)
    assert set(counts) == {f"first, {a}, {b}, {c}" for a in "xyz" for b in "xyz" for c in "xyz" if len({a, b, c}) == 3}
    assert all(10 < count < 125 for count in counts.values())


def test_dropout() -> None:
    """A quarter of 400 is 100; 60 to 140 is 4.6 standard deviations."""
    counts = captions_of(Source(SQUARE, 1, "a"), dropout=0.25)
    assert set(counts) == {"a", ""}
    assert 60 < counts[""] < 140
    assert captions_of(Source(SQUARE, 1, "a"), dropout=1.0) == {"": 400}


def test_trigger_word_is_for_the_concept_only() -> None:
    assert captions_of(Source(SQUARE, 1, "a, b"), trigger_word="sks") == {"sks, a, b": 400}
    regularisation = Source(SQUARE, 1, "a, b", is_regularisation=True)
    assert captions_of(regularisation, trigger_word="sks") == {"a, b": 400}


# --- from a dataset and settings ---


def picture(name: str, size: tuple[int, int], **values: Any) -> Picture:
    given: dict[str, Any] = {
        "folder": "2_cat",
        "concept": "cat",
        "repeats": 2,
        "is_regularisation": False,
        "caption": "",
        "digest": "0",
        **values,
    }
    return Picture(path=f"{given['folder']}/{name}", width_px=size[0], height_px=size[1], **given)


DATASET = Dataset(
    root=Path(),
    pictures=(
        picture("a.png", (1000, 1000), caption="a cat"),
        picture("b.png", (1500, 1000)),
        picture("c.png", (40, 40), folder="", concept=""),
        picture("d.png", (1000, 1500), folder="reg", concept="", is_regularisation=True, repeats=1),
    ),
    problems=(),
)


def test_pictures_are_placed_at_the_models_own_size() -> None:
    """At 512 in steps of 64; 640 x 384 is near 3:2; 40 px may be enlarged twice, to 80: one step of 64."""
    settings = parse_settings({})
    buckets = place_in_buckets(DATASET, settings, resolution_px=512, step_px=64)
    assert buckets == [(512, 512), (640, 384), (64, 64), (384, 640)]


def test_settings_of_size_win() -> None:
    settings = parse_settings({"resolution": 64, "bucket_step_px": 8, "upscale_limit": 1})
    buckets = place_in_buckets(DATASET, settings, resolution_px=512, step_px=64)
    assert buckets[0] == (64, 64)
    assert buckets[2] == (40, 40)
    assert all(width * height <= 64 * 64 and width % 8 == height % 8 == 0 for width, height in buckets)


def test_settings_reach_the_plan() -> None:
    settings = parse_settings(
        {
            "batch_size": 3,
            "seed": 9,
            "flip": True,
            "trigger_word": "sks",
            "shuffle_captions": True,
            "keep_tags": 2,
            "caption_dropout": 0.5,
        }
    )
    plan = make_planner(DATASET, [SQUARE, WIDE, SQUARE, TALL], settings, "自作")
    assert (plan.batch_size, plan.seed, plan.flip) == (3, 9, True)
    assert plan.rules == CaptionRules("sks", shuffle=True, keep_tags=2, dropout=0.5)
    assert list(plan.sources) == [
        Source(SQUARE, 2, "a cat"),
        Source(WIDE, 2, "cat"),  # without a caption: the folder's concept
        Source(SQUARE, 2, "自作"),  # without that too: the project's name
        Source(TALL, 1, "", is_regularisation=True),  # an ordinary picture must not be called by it
    ]
