"""Which captioners are there, without importing them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lora_train.core import captioners
from lora_train.core.captioners import (
    MODELS,
    CaptionerModel,
    find_model,
    folder_of,
    has_model,
    is_hub_name,
    typed_folder,
)
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


def test_any_model_of_the_hub() -> None:
    model = find_model(" microsoft/git-base ", "blip")
    assert (model.name, model.repository, model.label) == ("microsoft/git-base",) * 3
    assert (model.folder_name, model.kind, model.revision, model.files) == ("microsoft--git-base", "blip", "", ())
    assert find_model(VIT.repository, "wd14") is VIT
    assert find_model(VIT.repository, "blip").files == (), "what it is not, the hub's list of files will tell"
    with pytest.raises(ModelError, match="no captioner 'microsoft/git-base'"):
        find_model("microsoft/git-base")


def test_a_model_of_the_hub_at_a_revision() -> None:
    model = find_model(" microsoft/git-base@v1.0 ", "blip")
    assert (model.name, model.repository, model.revision) == ("microsoft/git-base@v1.0", "microsoft/git-base", "v1.0")
    assert model.folder_name == "microsoft--git-base@v1.0"
    assert find_model(model.name, "blip") == model
    assert find_model(f"{VIT.repository}@{VIT.revision}", "wd14") is VIT
    other = find_model(f"{VIT.repository}@{SWIN.revision}", "wd14")
    assert (other.repository, other.revision, other.files) == (VIT.repository, SWIN.revision, ())


@pytest.mark.parametrize(
    "typed", ["a/b", "Some-One/My_model.v2", " a/b\n", f"a/{'b' * 94}", "a/b@v1.0", f"a/b@{'0' * 40}", "a/b@main"]
)
def test_names_on_the_hub(typed: str) -> None:
    assert is_hub_name(typed)
    huggingface_hub = pytest.importorskip("huggingface_hub")
    huggingface_hub.utils.validate_repo_id(typed.strip().partition("@")[0])


@pytest.mark.parametrize(
    "typed",
    ["", "a", "a/b/c", "/a/b", "../a", "a/..", "a--b/c", "a/b.", "-a/b", "名/前", "a b/c", f"a/{'b' * 95}"]
    + [f"a/b@{revision}" for revision in ("", "..", "../c", "a..b", "/c", "c/d", "v1@v2", "版", "v" * 65)],
)
def test_what_is_no_name_on_the_hub(typed: str) -> None:
    assert not is_hub_name(typed)
    with pytest.raises(ModelError):
        find_model(typed, "blip")


def test_a_hub_name_is_looked_for_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {"HF_HUB_CACHE": str(tmp_path / "hub")}

    def found(typed: str) -> Path | None:
        return typed_folder(typed, "blip", tmp_path / "captioners", environment)

    def fill_with(folder: Path) -> Path:
        folder.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            (folder / name).touch()
        return folder

    assert found("microsoft/git-base") is None
    cached = tmp_path / "hub" / "models--microsoft--git-base"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc123\n", encoding="utf-8")
    assert found("microsoft/git-base") is None, "not whole"
    snapshot = fill_with(cached / "snapshots" / "abc123")
    assert found(" microsoft/git-base ") == snapshot
    downloaded = fill_with(tmp_path / "captioners" / "microsoft--git-base")
    assert found("microsoft/git-base") == downloaded
    commit = "0123456789" * 4
    assert found(f"microsoft/git-base@{commit}") is None, "another revision"
    assert found("microsoft/git-base@v1") is None
    pinned = fill_with(cached / "snapshots" / commit)
    assert found(f"microsoft/git-base@{commit}") == pinned
    (cached / "refs" / "v1").write_text("abc123", encoding="utf-8")
    assert found("microsoft/git-base@v1") == snapshot
    (tmp_path / "microsoft" / "git-base").mkdir(parents=True)
    assert found("microsoft/git-base") == Path("microsoft/git-base"), "a folder wins"
    assert found("/somewhere/else") == Path("/somewhere/else")


def test_of_a_model_that_we_know_any_revision_will_do(tmp_path: Path) -> None:
    environment = {"HF_HUB_CACHE": str(tmp_path / "hub")}
    cached = tmp_path / "hub" / "models--Salesforce--blip-image-captioning-base"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc123", encoding="utf-8")
    other = cached / "snapshots" / "abc123"
    other.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (other / name).touch()
    assert typed_folder(BLIP.repository, "blip", tmp_path, environment) == other
    ours = fill(tmp_path / BLIP.name, BLIP)
    assert typed_folder(BLIP.repository, "blip", tmp_path, environment) == ours
