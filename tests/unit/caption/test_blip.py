"""Image-to-text models from a folder: a small random BLIP through the path that a downloaded one takes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("torch")

import torch

from lora_train.caption import blip
from lora_train.caption.blip import continued
from lora_train.caption.devices import choose_device
from lora_train.caption.together import open_captioner
from lora_train.core.caption_settings import CaptionSettings
from lora_train.core.errors import DeviceMemoryError, ModelError
from lora_train.core.specs import CaptionPlan

pytestmark = pytest.mark.compat


@pytest.fixture
def folder(small_blip: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(small_blip, tmp_path / "blip"))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.linear_gradient("L").convert("RGB").save(path)
    return path


def captions(folder: Path, *pictures: Path, **values: Any) -> list[str]:
    settings = CaptionSettings(**{"blip_min_length": 4, "blip_max_length": 8, **values})
    captioner = open_captioner(CaptionPlan(blip=str(folder), settings=settings))
    assert captioner is not None
    return list(captioner.captions(pictures))


def words_of(folder: Path) -> set[str]:
    return {word for word in (folder / "vocab.txt").read_text(encoding="utf-8").split() if not word.startswith("[")}


def pickle_weights(folder: Path) -> Path:
    """Weights as they were published before safetensors."""
    from safetensors.torch import load_file

    path = folder / "pytorch_model.bin"
    torch.save(load_file(folder / "model.safetensors"), path)
    (folder / "model.safetensors").unlink()
    return path


# --- what is written ---


@pytest.mark.parametrize(
    ("prompt", "echo", "text", "caption"),
    [
        ("", "", " a cat\n on grass ", "a cat on grass"),
        ("A photo of", "a photo of", "a photo of a cat", "A photo of a cat"),
        ("A photo of", "a photo of", "a cat", "A photo of a cat"),
        ("photo of 猫", "photo of", "photo of a cat", "photo of 猫 a cat"),
        ("a photo, of", "a photo , of", "a photo , of a cat", "a photo, of a cat"),
        ("a cat", "a cat", "a cats", "a cats"),
        ("a photo of", "a photo of", "", "a photo of"),
        ("a photo of", "a photo of", "a photo of", "a photo of"),
        ("猫", "", "a cat", "猫 a cat"),
    ],
)
def test_the_prompt_stands_first_and_once(prompt: str, echo: str, text: str, caption: str) -> None:
    assert continued(prompt, echo, text) == caption


def test_a_sentence_from_a_folder(small_blip: Path, picture: Path) -> None:
    """Words of its vocabulary without marks, and always the same."""
    (caption,) = captions(small_blip, picture)
    assert len(caption.split(" ")) == 8
    assert set(caption.split(" ")) <= words_of(small_blip)
    assert captions(small_blip, picture, picture) == [caption, caption]


def test_it_says_what_transformers_says(small_blip: Path, picture: Path) -> None:
    """The same model by transformers' own words, without our lengths and settings around them."""
    import transformers

    model = transformers.BlipForConditionalGeneration.from_pretrained(str(small_blip)).eval()
    processor = transformers.BlipProcessor.from_pretrained(str(small_blip))
    with Image.open(picture) as opened, torch.no_grad():
        inputs = processor(images=opened, text="a photo of", return_tensors="pt")
        ids = model.generate(**inputs, num_beams=3, min_new_tokens=4, max_new_tokens=8)[0]
    expected = " ".join(processor.decode(ids, skip_special_tokens=True).split())
    assert expected.startswith("a photo of ")
    assert captions(small_blip, picture, blip_prompt="a photo of", blip_beams=3) == [expected]


@pytest.mark.parametrize("longest", [1, 3, 12])
def test_lengths_count_what_follows_the_prompt(small_blip: Path, picture: Path, longest: int) -> None:
    """A minimum above the maximum is the maximum."""
    (caption,) = captions(small_blip, picture, blip_prompt="A red  cat", blip_min_length=50, blip_max_length=longest)
    assert caption.startswith("A red cat ")
    assert len(caption.split(" ")) == 3 + longest


@pytest.mark.parametrize("kind", ["git", "vision_encoder_decoder", "blip_2"])
def test_other_models_from_their_folders(make_captioner: Callable[[str], Path], picture: Path, kind: str) -> None:
    """Each takes the prompt in another way, and tells it or not."""
    folder = make_captioner(kind)
    (plain,) = captions(folder, picture, blip_beams=2)
    assert plain == " ".join(plain.split())
    (begun,) = captions(folder, picture, blip_prompt="A photo of")
    assert begun.startswith("A photo of")
    if kind != "blip_2":  # whose last layer has no bias that would keep it from marks
        assert [len(caption.split(" ")) for caption in (plain, begun)] == [8, 3 + 8]
        assert words_of(folder) | {"A"} >= {*plain.split(" "), *begun.split(" ")}


def test_pictures_of_any_kind(small_blip: Path, tmp_path: Path) -> None:
    Image.new("RGBA", (7, 90), (255, 0, 0, 40)).save(tmp_path / "high.png")
    Image.new("L", (90, 7), 40).save(tmp_path / "wide.jpg")
    assert len(captions(small_blip, tmp_path / "high.png", tmp_path / "wide.jpg")) == 2


# --- weights ---


def test_pickled_weights_say_the_same(folder: Path, picture: Path) -> None:
    expected = captions(folder, picture)
    pickle_weights(folder)
    assert captions(folder, picture) == expected


def test_a_pickle_that_would_run_code_is_refused_and_not_run(folder: Path, picture: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {folder / 'trapped'}",)

    torch.save({"weight": Trap()}, pickle_weights(folder))
    with pytest.raises(ModelError, match=r"posix\.system|nt\.system"):
        captions(folder, picture)
    assert not (folder / "trapped").exists()


def test_code_in_the_folder_is_not_run(folder: Path, picture: Path) -> None:
    text = (folder / "config.json").read_text(encoding="utf-8")
    text = text.replace('"model_type": "blip"', '"auto_map": {"AutoConfig": "own.Own"}, "model_type": "own"', 1)
    (folder / "config.json").write_text(text.replace("BlipForConditionalGeneration", "OwnModel"), encoding="utf-8")
    (folder / "own.py").write_text(f"open({str(folder / 'trapped')!r}, 'w')\n", encoding="utf-8")
    with pytest.raises(ModelError, match="needs OwnModel") as error:
        captions(folder, picture)
    assert "is never run" in error.value.hint
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError):
        captions(folder, picture)
    assert not (folder / "trapped").exists()


@pytest.mark.parametrize("is_pickled", [False, True])
def test_missing_weights_are_told(folder: Path, picture: Path, is_pickled: bool) -> None:
    """Else they would be random, and so would be the captions."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    gone = "text_decoder.bert.encoder.layer.0.crossattention.self.key.weight"
    del weights[gone]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    if is_pickled:
        pickle_weights(folder)
    with pytest.raises(ModelError, match=f"lacks 1 tensors, the first is {gone}"):
        captions(folder, picture)


def test_damaged_files_are_told(folder: Path, picture: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="can't write captions"):
        captions(folder, picture)
    weights.unlink()
    with pytest.raises(ModelError, match="has no weights"):
        captions(folder, picture)
    for content in ("{", "[]", '{"model_type": "blip"}'):
        (folder / "config.json").write_text(content)
        with pytest.raises(ModelError, match="does not name a model of transformers"):
            captions(folder, picture)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        captions(folder, picture)


# --- devices ---


@pytest.mark.parametrize(
    ("wanted", "free_bytes", "device"),
    [("auto", 2000, "cuda"), ("auto", 1999, "cpu"), ("cuda", 0, "cuda"), ("cpu", 9999, "cpu")],
)
def test_auto_takes_the_card_where_it_has_room(
    monkeypatch: pytest.MonkeyPatch, wanted: Any, free_bytes: int, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free_bytes, 10_000))
    assert choose_device(wanted, 1000) == device


def test_without_a_card_the_processor_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto", 1) == choose_device("cuda", 1) == "cpu"


def test_a_full_card_is_told_with_what_helps(small_blip: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(blip, "_inputs", full)
    with pytest.raises(DeviceMemoryError, match="too little free memory") as error:
        captions(small_blip, picture)
    assert error.value.hint == "Set Caption device to cpu."
