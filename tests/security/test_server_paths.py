"""A page that others can reach takes no path of the server: not by settings, presets, arguments or archives."""

from __future__ import annotations

import base64
import io
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from lora_train.api.routes import ROUTES
from lora_train.core.caption_settings import CaptionSettings
from lora_train.core.config import TrainSettings
from lora_train.core.dataset_settings import DatasetSettings
from lora_train.core.grid_settings import GridSettings
from lora_train.core.settings import setting_fields
from lora_train.core.sweep_settings import SweepSettings

_SECTIONS: dict[str, Any] = {
    "train": TrainSettings,
    "dataset": DatasetSettings,
    "caption": CaptionSettings,
    "preview": GridSettings,
    "sweep": SweepSettings,
}
TEXTS = [
    (section, field.name, field.kind)
    for section, schema in _SECTIONS.items()
    for field in setting_fields(schema)
    if field.kind in ("text", "texts", "choices")
]
_TARGETS = ("secret.safetensors", "secret.txt", "secret.png", "")
_KOHYA_PATHS = (
    *("pretrained_model_name_or_path", "vae", "network_weights", "train_data_dir", "reg_data_dir", "output_dir"),
    *("logging_dir", "resume", "config_file", "dataset_config", "tokenizer_cache_dir", "sample_prompts", "in_json"),
)


@pytest.mark.parametrize(("section", "name", "kind"), TEXTS, ids=lambda value: value)
def test_no_setting_makes_an_open_page_read_a_path(
    world: Any,
    outside: Path,
    watched: Any,
    without_workers: None,
    share: Callable[[int], int],
    count: Callable[[str, int], None],
    section: str,
    name: str,
    kind: str,
) -> None:
    world.host.is_local = False
    ticked = {"use_wd14": True, "use_blip": True, "caption_action": "captioner"}
    for target in _TARGETS[: share(len(_TARGETS))]:
        path = str(outside / target)
        value: Any = path if kind == "text" else [path]
        settings = {section: {name: value}} if section != "caption" else {"caption": {**ticked, name: value}}
        assert world.ask("POST", "settings", json={**world.ids, **settings}).status_code == 200
        _use_settings(world)
        assert watched.seen == [], target
    if name != "trigger_word":  # which is a word, whatever it looks like
        _no_job_has(world, outside)
    count("settings", share(len(_TARGETS)))


@pytest.mark.parametrize("argument", _KOHYA_PATHS)
def test_no_argument_of_kohya_makes_an_open_page_read_a_path(
    world: Any, outside: Path, watched: Any, without_workers: None, argument: str
) -> None:
    world.host.is_local = False
    text = f'--{argument}="{outside / "secret.safetensors"}"'
    world.post("settings", **world.ids, train={"sd_script_args": text, "base_model": "demo"})
    _use_settings(world)
    assert watched.seen == []
    _no_job_has(world, outside)


def _use_settings(world: Any) -> None:
    """Everything that a version's settings are used for; most is refused."""
    body = {**world.ids, "job": world.train, "lora": "猫-v1.safetensors", "name": "character", "class_name": "cat"}
    body |= {"prompt": "a cat", "count": 1, "weight": 1.0}
    for route in ROUTES:
        if route.path in ("projects/delete", "versions/delete", "jobs/delete", "loras/delete", "settings"):
            continue
        wanted = {name: value for name, value in body.items() if name in route.takes.__struct_fields__}
        sent = {"params": wanted} if route.method == "GET" else {"json": wanted}
        assert world.ask(route.method, route.path, **sent).status_code < 500, route.path
    for model in (str(world.root / "outside"), "../outside"):
        for kind in ("wd14", "blip"):
            assert world.ask("POST", "captioners/download", json={"model": model, "kind": kind}).status_code == 400


def _no_job_has(world: Any, outside: Path) -> None:
    """A worker does what its job says."""
    for path in (world.root / "workspace").rglob("job.json"):
        assert str(outside) not in path.read_text(encoding="utf-8"), path


def test_an_archive_can_not_lead_out(world: Any, outside: Path, tree: Callable[..., Any]) -> None:
    """Names with `..`, links to other folders, and names of drives and devices in a zip."""
    surroundings = tree(world.root, (world.root / "workspace",))
    link = zipfile.ZipInfo("link.png")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    entries: list[tuple[Any, bytes]] = [
        (link, str(outside / "secret.png").encode()),
        *((name, world.png()) for name in ("../../out.png", "/tmp/out.png", "C:\\out.png", "..\\..\\out.png")),
        *(
            (name, world.png())
            for name in ("a/../../../out.png", "con.png", "a.png:out", "．．/out.png", "..／out.png")
        ),
    ]
    for name, content in entries:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr(name, content)
        file = {"name": "a.zip", "content": base64.b64encode(stream.getvalue()).decode()}
        for path in ("dataset/upload", "regularisation/upload"):
            body = {**world.ids, "files": [file], **({"class_name": "cat"} if "reg" in path else {})}
            assert world.ask("POST", path, json=body).status_code in (200, 400)
    assert tree(world.root, (world.root / "workspace",)) == surroundings
    secret = (outside / "secret.png").read_bytes()
    for path in (world.root / "workspace" / "projects").rglob("*"):
        assert not path.is_symlink()
        assert not path.is_file() or path.name == "a.png" or path.read_bytes() != secret or "link" not in path.name
