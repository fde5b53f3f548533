"""Which captioners are there, without importing them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lora_train.core import captioners
from lora_train.core.captioners import MODELS, CaptionerModel, find_model, folder_of, has_model, typed_folder
from lora_train.core.errors import ModelError
from lora_train.core.installing import install_command

VIT, SWIN, BLIP = MODELS


def fill(folder: Path, model: CaptionerModel) -> Path:
    """Files of the right sizes that take no room."""
    folder.mkdir(parents=True)
    for file in model.files:
        with (folder / file.name).open("wb") as stream:
            stream.truncate(file.size_bytes)
    return folder


def test_every_model_is_pinned() -> None:
    assert len({model.name for model in MODELS}) == len(MODELS)
    for model in MODELS:
        assert len(model.revision) == 40
        assert all(len(file.sha256) in (0, 64) and file.size_bytes for file in model.files)
        assert all(file.sha256 for file in model.files if file.size_bytes > 10_000), "large files by our own checksum"
    # what two independent manifests give for the whole of BLIP at this revision
    assert BLIP.size_bytes == 990_769_234


def test_names() -> None:
    assert find_model("wd-vit-tagger-v3") is VIT
    with pytest.raises(ModelError, match="no captioner 'wd-v4'"):
        find_model("wd-v4")


def test_a_model_in_the_workspace(tmp_path: Path) -> None:
    nowhere = {"HF_HOME": str(tmp_path / "none")}
    assert folder_of(VIT, tmp_path, nowhere) is None
    folder = fill(tmp_path / VIT.name, VIT)
    assert folder_of(VIT, tmp_path, nowhere) == folder
    (folder / "model.onnx").write_bytes(b"cut short")
    assert folder_of(VIT, tmp_path, nowhere) is None


@pytest.mark.parametrize(
    ("environment", "cache"),
    [
        ({"HF_HUB_CACHE": "{}/a", "HF_HOME": "{}/b"}, "a"),
        ({"HUGGINGFACE_HUB_CACHE": "{}/c", "HF_HOME": "{}/b"}, "c"),
        ({"HF_HOME": "{}/b", "XDG_CACHE_HOME": "{}/d"}, "b/hub"),
        ({"XDG_CACHE_HOME": "{}/d"}, "d/huggingface/hub"),
    ],
)
def test_a_model_in_the_hubs_cache(environment: dict[str, str], cache: str, tmp_path: Path) -> None:
    variables = {name: value.format(tmp_path) for name, value in environment.items()}
    snapshots = tmp_path / cache / "models--SmilingWolf--wd-vit-tagger-v3" / "snapshots"
    fill(snapshots / ("0" * 40), VIT)
    assert folder_of(VIT, tmp_path / "captioners", variables) is None, "another revision"
    folder = fill(snapshots / VIT.revision, VIT)
    assert folder_of(VIT, tmp_path / "captioners", variables) == folder


def test_the_cache_is_where_huggingface_hub_has_it() -> None:
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    name = repo_folder_name(repo_id=BLIP.repository, repo_type="model")
    known = Path(constants.HF_HUB_CACHE) / name / "snapshots" / BLIP.revision
    assert captioners._in_hub_cache(BLIP, captioners.os.environ) == known


def test_a_persons_own_folder(tmp_path: Path) -> None:
    assert not has_model("wd14", tmp_path / "none")
    for name in ("model.onnx", "selected_tags.csv"):
        assert not has_model("wd14", tmp_path)
        (tmp_path / name).touch()
    assert has_model("wd14", tmp_path)
    (tmp_path / "config.json").touch()
    assert not has_model("blip", tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    assert has_model("blip", tmp_path)


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captioners.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else name)
    assert captioners.missing_packages("wd14") == ("onnxruntime",)
    assert captioners.missing_packages("blip") == ()
    assert install_command(("onnxruntime",)) == f'"{sys.executable}" -m pip install onnxruntime'


def test_a_hub_name_is_looked_for_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {"HF_HUB_CACHE": str(tmp_path / "hub")}
    cached = tmp_path / "hub" / "models--microsoft--git-base"
    assert typed_folder("microsoft/git-base", environment) == Path("microsoft/git-base")
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc123\n", encoding="utf-8")
    assert typed_folder(" microsoft/git-base ", environment) == cached / "snapshots" / "abc123"
    (tmp_path / "microsoft" / "git-base").mkdir(parents=True)
    assert typed_folder("microsoft/git-base", environment) == Path("microsoft/git-base"), "a folder wins"
    assert typed_folder("/somewhere/else", environment) == Path("/somewhere/else")
