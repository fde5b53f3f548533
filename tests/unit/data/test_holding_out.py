"""Which pictures are held out: as many as asked for, always the same, and never a relative of a trained one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_train.core.config import TrainSettings
from lora_train.data.dataset import Dataset, Picture
from lora_train.data.holding_out import held_out, lasting_name, not_shown, parted, wanted_count


def picture(path: str, content: str = "", *, is_regularisation: bool = False) -> Picture:
    return Picture(
        path=path,
        folder=path.rpartition("/")[0],
        concept="",
        repeats=3,
        is_regularisation=is_regularisation,
        caption="",
        width_px=64,
        height_px=64,
        digest=path,
        content=content or path,
    )


def dataset(*pictures: Picture, root: Path = Path("nowhere")) -> Dataset:
    return Dataset(root, pictures, ())


@pytest.mark.parametrize(
    ("count", "hold_out", "wanted"),
    [
        *((15, -1, 0), (16, -1, 2), (23, -1, 2), (24, -1, 3), (80, -1, 10)),
        *((9, 3, 0), (10, 3, 3), (10, 0, 0), (10, 5, 5), (10, 9, 5)),
        *((9, 0.5, 0), (20, 0.1, 2), (20, 0.01, 1), (20, 0.9, 10)),
    ],
)
def test_how_many(count: int, hold_out: float, wanted: int) -> None:
    assert wanted_count(count, hold_out) == wanted


def test_always_the_same_by_the_seed() -> None:
    pictures = dataset(*(picture(f"9_cat/{number}.png") for number in range(32)))
    chosen = [held_out(pictures, TrainSettings(seed=seed)) for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert [len(paths) for paths in chosen] == [4, 4, 4]
    assert held_out(pictures, TrainSettings(seed=1, epochs=99, rank=4, batch_size=7)) == chosen[0]


def test_the_same_whatever_the_repeats_in_the_folders_name() -> None:
    """They change when pictures are added, and no other number should."""
    names = [f"{number}_x.png" for number in range(32)]
    one, other = (
        held_out(dataset(*(picture(f"{folder}/{name}") for name in names)), TrainSettings(seed=1))
        for folder in ("9_cat", "12_cat")
    )
    assert [path.partition("/")[2] for path in one] == [path.partition("/")[2] for path in other]
    assert lasting_name("reg/5_cat_2/7_x.png") == "reg/cat_2/7_x.png"
    assert lasting_name("7_x.png") == "7_x.png"


def test_regularisation_pictures_never() -> None:
    training = [picture(f"9_cat/{number}.png") for number in range(10)]
    others = [picture(f"reg/1_animal/{number}.png", is_regularisation=True) for number in range(50)]
    chosen = held_out(dataset(*training, *others), TrainSettings(hold_out=5))
    assert len(chosen) == 5
    assert all(path.startswith("9_cat/") for path in chosen)


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=10, max_size=40),
    st.integers(0, 5),
    st.sampled_from([-1.0, 0.1, 0.3, 1.0, 4.0, 20.0]),
)
def test_nothing_of_it_is_trained(
    tmp_path_factory: pytest.TempPathFactory, made: list[tuple[int, int]], seed: int, hold_out: float
) -> None:
    """Pictures that share an original or their content are on one side, over any number of links between them."""
    root = tmp_path_factory.mktemp("set") / "processed"
    root.mkdir()
    files = {
        f"1_cat/{number:02d}.png": {"origin": f"{origin}.jpg", "caption": ""} for number, (origin, _) in enumerate(made)
    }
    root.joinpath(".made.json").write_text(json.dumps({"files": files}), encoding="utf-8")
    pictures = [picture(path, f"content {content}") for path, (_, content) in zip(files, made, strict=True)]
    chosen = held_out(dataset(*pictures, root=root), TrainSettings(seed=seed, hold_out=hold_out))
    sides = [path in chosen for path in files]
    for (origin, content), side in zip(made, sides, strict=True):
        for (other_origin, other_content), other_side in zip(made, sides, strict=True):
            if origin == other_origin or content == other_content:
                assert side == other_side
    assert 2 * len(chosen) <= len(pictures)


def test_pieces_of_the_original_extension_stay_together() -> None:
    """`00003-0-cat.png` and `00004-1-cat.png` are pieces of one upload (its file names)."""
    pictures = [
        picture(f"1_cat/{2 * number + piece:05d}-{piece}-cat{number}.png") for number in range(8) for piece in (0, 1)
    ]
    chosen = held_out(dataset(*pictures), TrainSettings())
    assert len(chosen) == 2
    assert len({path.rpartition("-")[2] for path in chosen}) == 1


def test_the_rest_keeps_its_place() -> None:
    pictures = dataset(*(picture(f"1_cat/{number}.png") for number in range(4)))
    held = ("1_cat/1.png", "1_cat/2.png")
    assert [each.repeats for each in not_shown(pictures, held).pictures] == [3, 0, 0, 3]
    trained, measured = parted(pictures, held)
    assert [each.path for each in trained.pictures] == ["1_cat/0.png", "1_cat/3.png"]
    assert [each.path for each in measured.pictures] == list(held)
