"""What the adapter tells of a WebUI, and our section in its settings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.compat


@pytest.fixture
def host(host_modules: Path) -> Any:
    from lora_train.hosts.webui import WebUI, register_settings

    register_settings()
    return WebUI()


def set_option(key: str, value: object) -> None:
    from modules import shared

    shared.opts.data[key] = value


def test_name(host: Any) -> None:
    assert host.name == "Automatic1111 v0.1-minimal"


def test_base_models_have_names_without_hashes(host: Any, host_modules: Path) -> None:
    folder = host_modules / "models" / "Stable-diffusion"
    assert [(model.name, model.path) for model in host.base_models()] == [
        ("one.safetensors", str(folder / "one.safetensors")),
        ("two.safetensors", str(folder / "two.safetensors")),
    ]
    (folder / "three.safetensors").write_bytes(b"")
    host.refresh_base_models()
    assert len(host.base_models()) == 3


def test_loras_go_where_the_host_looks(host: Any, host_modules: Path, tmp_path: Path) -> None:
    from modules import shared

    assert host.lora_dir() == host.lora_root() == host_modules / "models" / "Lora"
    shared.cmd_opts.lora_dir = str(tmp_path / "other")
    assert host.lora_root() == tmp_path / "other"
    set_option("train_tools_lora_folder", "mine/cats")
    assert host.lora_dir() == tmp_path / "other" / "mine" / "cats"
    assert host.lora_root() == tmp_path / "other"


@pytest.mark.parametrize("folder", ["..", "../elsewhere", "a/../../b", "/etc", "  "])
def test_no_sub_folder_leads_out_of_the_lora_folder(host: Any, folder: str) -> None:
    set_option("train_tools_lora_folder", folder)
    assert host.lora_dir() == host.lora_root()


def test_new_loras_are_noticed(host: Any, host_modules: Path) -> None:
    header = b'{"__metadata__":{"ss_output_name":"cat"}}'
    file = host_modules / "models" / "Lora" / "cat.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    host.refresh_loras()
    assert list(sys.modules["networks"].available_networks) == ["cat"]


def test_a_host_that_cannot_list_its_loras_breaks_nothing(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("a damaged file")

    monkeypatch.setattr(sys.modules["networks"], "list_available_networks", fail)
    host.refresh_loras()
    monkeypatch.delitem(sys.modules, "networks")
    host.refresh_loras()


@pytest.mark.parametrize(
    ("flags", "takes"),
    [
        ({}, True),
        ({"webui_is_non_local": True}, False),
        ({"hide_ui_dir_config": True}, False),
    ],
)
def test_who_may_name_files_of_the_server(host: Any, flags: dict[str, bool], takes: bool) -> None:
    from modules import shared

    vars(shared.cmd_opts).update(flags)
    assert host.takes_paths() is takes


def test_a_host_that_does_not_tell_whether_it_is_open_counts_as_open(host: Any) -> None:
    from modules import shared

    del shared.cmd_opts.webui_is_non_local
    assert not host.takes_paths()


def test_the_workspace(host: Any, host_modules: Path, tmp_path: Path) -> None:
    from lora_train.hosts.webui import workspace_dir

    assert workspace_dir() == host_modules / "outputs" / "train_tools"
    set_option("train_tools_workspace", "loras here")
    assert workspace_dir() == host_modules / "loras here"
    set_option("train_tools_workspace", str(tmp_path / "絵"))
    assert workspace_dir() == tmp_path / "絵"


def test_settings(host: Any) -> None:
    from modules import shared

    ours = {key: info for key, info in shared.opts.data_labels.items() if key.startswith("train_tools_")}
    assert set(ours) == {"train_tools_workspace", "train_tools_lora_folder", "train_tools_auto_publish"}
    assert {info.section for info in ours.values()} == {("train_tools", "Train Tools")}
    assert host.auto_publish()
    set_option("train_tools_auto_publish", False)
    assert not host.auto_publish()
    assert not shared.opts.set("train_tools_workspace", "/etc", is_api=True)  # by strangers
    assert shared.opts.restricted_opts == {"train_tools_workspace", "train_tools_lora_folder"}


def test_settings_of_a_host_without_restricted_options(host_modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modules import options, shared

    from lora_train.hosts.webui import register_settings

    class Plain(options.OptionInfo):
        def __init__(self, default: Any, label: str = "", *, section: Any = None) -> None:
            super().__init__(default, label, section=section)

    monkeypatch.setattr(shared, "OptionInfo", Plain)
    register_settings()
    assert "train_tools_workspace" in shared.opts.data_labels


@pytest.mark.parametrize(
    ("flag", "pairs"),
    [
        (None, []),
        ("a:b", [("a", "b")]),
        ("a:b, c:d:e", [("a", "b"), ("c", "d:e")]),
    ],
)
def test_credentials_of_the_api(host: Any, flag: str | None, pairs: list[tuple[str, str]]) -> None:
    from modules import shared

    from lora_train.hosts.webui import api_credentials

    shared.cmd_opts.api_auth = flag
    assert api_credentials() == pairs


def test_one_app_for_a_workspace(host_modules: Path) -> None:
    from lora_train.hosts.webui import WebUI, the_app, the_host

    host = the_host(WebUI)
    assert the_host(WebUI) is host
    first = the_app(host)
    assert the_app(host) is first
    set_option("train_tools_workspace", "another")
    assert the_app(host) is not first


def test_the_sentence_of_a_refusal(host: Any, host_modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_train.app.snapshot import QueueEntry
    from lora_train.core.jobs import JobStatus
    from lora_train.hosts.webui import describe_work, the_app

    app = the_app(host)
    assert describe_work(app) == ""
    entries = [QueueEntry(job="j", title="猫 v1 · Cat-v1", kind="train", state="running")]
    monkeypatch.setattr(app.queue, "entries", lambda: entries)
    for eta_s, ending in ((None, "wait for its end"), (20.0, "wait about 1 minute"), (400.0, "wait about 7 minutes")):
        monkeypatch.setattr(app, "status", lambda _, eta_s=eta_s: JobStatus(eta_s=eta_s))
        assert describe_work(app) == (
            "Train Tools is training on this card: 猫 v1 · Cat-v1. "
            f"Stop or pause it in the Train Tools tab, or {ending}."
        )
    for kind, work in (
        ("preview", "drawing previews"),
        ("regularisation", "drawing regularisation pictures"),
    ):
        entries[:] = [QueueEntry(job="j", title="cat v1", kind=kind, state="running")]
        assert describe_work(app).startswith(f"Train Tools is {work} on this card: cat v1.")
