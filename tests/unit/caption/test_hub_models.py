"""Downloads of any model of the hub, by its name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lora_train.core import captioners
from lora_train.core.caption_settings import CaptionerKind
from lora_train.core.captioners import CaptionerModel

if TYPE_CHECKING:
    from tests.assets.hubs import Hub
    from tests.unit.caption.conftest import Desk

pytestmark = pytest.mark.compat

TAGGER: dict[str, bytes] = {"model.onnx": bytes(range(256)) * 4096, "selected_tags.csv": b"tag_id,name\n1,cat\n"}
SAYER: dict[str, bytes] = {
    name: name.encode() * 1000
    for name in (
        "config.json", "generation_config.json", "preprocessor_config.json", "special_tokens_map.json",
        "tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model",
        "model.safetensors",
    )
}  # fmt: skip
BESIDE = (
    "README.md", "requirements.txt", "modeling_git.py", "config.py", "pytorch_model.bin", "tf_model.h5",
    "flax_model.msgpack", "model.fp16.safetensors", "training_args.bin", "onnx/model.onnx", "runs/config.json",
    "pytorch_model.bin.index.json", ".gitattributes",
)  # fmt: skip


def unknown(kind: CaptionerKind, hub: Hub, contents: dict[str, bytes]) -> CaptionerModel:
    model = captioners.find_model("Some-One/My_captioner.v2", kind)
    hub.offer(model, contents)
    hub.large = {"model.onnx", "model.safetensors"}
    return model


@pytest.mark.parametrize(("kind", "needed"), [("wd14", TAGGER), ("blip", SAYER)])
def test_any_model_comes_with_what_its_kind_needs_and_no_code(
    desk: Desk, hub: Hub, kind: CaptionerKind, needed: dict[str, bytes]
) -> None:
    model = unknown(kind, hub, dict.fromkeys(BESIDE, b"print('code')") | needed)
    status = desk.download(model)
    assert (status.state, status.message) == ("finished", "")
    folder = desk.parent / "Some-One--My_captioner.v2"
    assert desk.contents(folder) == needed
    assert {name for name, _ in hub.asked} == set(needed)
    assert desk.visible() == [folder.name]
    assert json.loads((folder / ".hub.json").read_bytes()) == {"repository": model.repository, "revision": hub.newest}
    assert captioners.typed_folder(model.repository, kind, desk.parent, {"HF_HOME": str(desk.root)}) == folder
    assert (status.phase_done, status.phase_total) == (status.result["bytes"],) * 2

    hub.newest, asked = "f" * 40, len(hub.tokens)
    assert desk.download(model).state == "finished"
    assert len(hub.tokens) == asked, "it stays at its commit"


def test_pickled_weights_in_parts_where_there_are_no_others(desk: Desk, hub: Hub) -> None:
    parts = {f"pytorch_model-0000{number}-of-00002.bin": bytes(2000) for number in (1, 2)}
    parts["pytorch_model.bin.index.json"] = b"{}"
    needed = {name: SAYER[name] for name in ("config.json", "preprocessor_config.json")} | parts
    model = unknown("blip", hub, {**needed, "model.safetensors.index.json": b"{}"})
    assert desk.download(model).state == "finished"
    assert desk.contents(desk.parent / model.folder_name) == needed


def test_a_half_model_goes_on_at_the_commit_that_it_began_with(desk: Desk, hub: Hub) -> None:
    model = unknown("wd14", hub, TAGGER)
    hub.cut_after_bytes = [300_000] + 40 * [0]
    assert desk.download(model).state == "failed"
    hub.newest, hub.cut_after_bytes, first = "f" * 40, [], hub.newest
    assert desk.download(model).state == "finished"
    assert hub.revisions == ["", first]
    assert desk.contents(desk.parent / model.folder_name) == TAGGER


def test_a_commit_that_is_gone_is_asked_for_once(desk: Desk, hub: Hub) -> None:
    model = unknown("wd14", hub, TAGGER)
    hub.cut_after_bytes = [300_000] + 40 * [0]
    assert desk.download(model).state == "failed"
    hub.files = {(repository, "f" * 40, name): content for (repository, _, name), content in hub.files.items()}
    hub.newest, hub.cut_after_bytes = "f" * 40, []
    status = desk.download(model)
    assert (status.error, "does not have it (404)" in status.message) == ("ModelError", True)
    assert desk.download(model).state == "finished"


OLDER = "0123456789" * 4


@pytest.mark.parametrize("revision", [OLDER, "v1.0"])
def test_the_revision_that_a_person_names(desk: Desk, hub: Hub, revision: str) -> None:
    unknown("wd14", hub, {**TAGGER, "model.onnx": b"newer"})
    hub.tags["v1.0"] = OLDER
    model = captioners.find_model(f"Some-One/My_captioner.v2@{revision}", "wd14")
    hub.files |= {(model.repository, OLDER, name): content for name, content in TAGGER.items()}
    assert desk.download(model).state == "finished"
    folder = desk.parent / f"Some-One--My_captioner.v2@{revision}"
    assert desk.contents(folder) == TAGGER
    assert json.loads((folder / ".hub.json").read_bytes()) == {"repository": model.repository, "revision": OLDER}
    assert captioners.typed_folder(model.name, "wd14", desk.parent, {"HF_HOME": str(desk.root)}) == folder
    assert hub.revisions == [revision]

    hub.tags["v1.0"], asked = "f" * 40, len(hub.tokens)
    assert desk.download(model).state == "finished"
    assert len(hub.tokens) == asked, "it stays at its commit, also where the tag is moved"


def test_half_a_tag_goes_on_at_the_commit_that_it_began_with(desk: Desk, hub: Hub) -> None:
    model = captioners.find_model("Some-One/My_captioner.v2@v1.0", "wd14")
    hub.tags, hub.large = {"v1.0": OLDER}, {"model.onnx"}
    hub.files = {(model.repository, OLDER, name): content for name, content in TAGGER.items()}
    hub.cut_after_bytes = [300_000] + 40 * [0]
    assert desk.download(model).state == "failed"
    hub.tags, hub.cut_after_bytes = {"v1.0": "f" * 40}, []
    assert desk.download(model).state == "finished"
    assert hub.revisions == ["v1.0", OLDER]
    assert desk.contents(desk.parent / model.folder_name) == TAGGER


def test_a_revision_that_is_not_there(desk: Desk, hub: Hub) -> None:
    unknown("wd14", hub, TAGGER)
    status = desk.download(captioners.find_model(f"Some-One/My_captioner.v2@{OLDER}", "wd14"))
    assert (status.error, status.message) == (
        "ModelError",
        f"Some-One/My_captioner.v2@{OLDER} can't be downloaded: {hub.url} does not have it (404).",
    )


def test_another_commit_than_was_asked_for(desk: Desk, hub: Hub) -> None:
    model = captioners.find_model(f"Some-One/My_captioner.v2@{OLDER}", "wd14")
    hub.offer(model, TAGGER)
    hub.answers_with = hub.newest
    status = desk.download(model)
    assert status.error == "ModelError"
    assert f"commit {hub.newest} of {model.repository} instead of {OLDER}" in status.message
    assert hub.asked == []


@pytest.mark.parametrize(
    ("kind", "lacking", "told"),
    [
        ("wd14", {"model.onnx"}, "is not a WD14 tagger: it has no model.onnx."),
        ("wd14", set(TAGGER), "is not a WD14 tagger: it has no model.onnx and no selected_tags.csv."),
        ("blip", {"config.json"}, "is not an image-to-text model: it has no config.json."),
        ("blip", {"preprocessor_config.json"}, "is not an image-to-text model: it has no preprocessor_config.json."),
        ("blip", {"model.safetensors"}, "is not an image-to-text model: it has no model.safetensors."),
    ],
)
def test_a_model_of_another_kind(desk: Desk, hub: Hub, kind: CaptionerKind, lacking: set[str], told: str) -> None:
    contents = {"README.md": b"x"} | (TAGGER if kind == "wd14" else SAYER)
    model = unknown(kind, hub, {name: content for name, content in contents.items() if name not in lacking})
    status = desk.download(model)
    assert (status.error, status.message) == ("ModelError", f"Some-One/My_captioner.v2 {told}")
    assert hub.asked == []
    assert not desk.half(model).exists()


def test_a_name_that_the_hub_does_not_know(desk: Desk, hub: Hub) -> None:
    status = desk.download(captioners.find_model("nobody/nothing", "blip"))
    assert (status.error, status.message) == (
        "ModelError",
        f"nobody/nothing is not on {hub.url}, or not for everybody.",
    )
    assert "Check its name" in status.hint


def test_a_model_that_must_be_asked_for(desk: Desk, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token of the person who logged in goes to the hub, and not to the store on another host."""
    model = unknown("wd14", hub, TAGGER)
    hub.token = "hf_secret"
    status = desk.download(model)
    assert (status.error, status.message) == (
        "ModelError",
        "Some-One/My_captioner.v2 is given only to those whom its owner lets in.",
    )
    assert "hf auth login" in status.hint
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.tokens.clear()
    assert desk.download(model).state == "finished"
    assert {token for path, token in hub.tokens if path.startswith("/store")} == {""}
    assert {token for path, token in hub.tokens if "/resolve/" in path and not path.startswith("/store")} == {
        "Bearer hf_secret"
    }
