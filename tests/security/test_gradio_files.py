"""What gradio itself would hand out or take in by the path that a caller names, beside our own routes."""

from __future__ import annotations

import http.client
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

pytest.importorskip("gradio")
pytest.importorskip("httpx")

import gradio
from PIL import Image

from lora_train.core.preset_files import preset_path
from lora_train.data import archives

pytestmark = pytest.mark.compat

OpenPage = Callable[..., Any]
GENERATION = int(gradio.__version__.partition(".")[0])


def raw_get(client: Any, path: str) -> tuple[int, bytes]:
    """Sent as it is written: clients take `..` out of addresses."""
    connection = http.client.HTTPConnection(urlsplit(str(client.base_url)).netloc, timeout=30)
    connection.request("GET", path, headers=dict(client.headers) | {"Cookie": getattr(client, "cookie", "")})
    answer = connection.getresponse()
    status, content = answer.status, answer.read()
    connection.close()
    return status, content


def spellings(path: Path, upload_dir: Path) -> list[str]:
    """Ways to write the path of a file, the last ones through a folder that gradio does hand out."""
    text = path.as_posix()
    return [
        quote(text),
        quote(text.lstrip("/")),
        quote("/" + text),
        quote(path.parent.as_posix()) + "/./" + quote(path.name),
        quote(text).replace("/", "%2f"),
        quote(f"{upload_dir}/x/" + "../" * (len(upload_dir.parts) + 1) + text.lstrip("/")),
        quote(f"{upload_dir}/x/" + "../" * (len(upload_dir.parts) + 1) + text.lstrip("/")).replace("..", "%2e%2e"),
        quote(f"file://{text}", safe=":/"),
    ]


@pytest.mark.parametrize("auth", [None, ("ann", "x")], ids=["open", "login"])
def test_the_standalone_page_hands_out_no_file_by_its_path(
    open_page: OpenPage, tmp_path: Path, auth: tuple[str, str] | None, count: Callable[[str, int], None]
) -> None:
    client = open_page(auth=auth)
    if auth:  # somebody who may look at the page
        assert client.post("/login", data={"username": auth[0], "password": auth[1]}).status_code == 200
        client.cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    private = client.app.workspace.root / "projects" / "P" / "versions" / "v1" / "version.json"
    beside = Path.cwd() / "private.txt"
    beside.write_text("secret", encoding="utf-8")
    elsewhere = tmp_path / "elsewhere.txt"
    elsewhere.write_text("secret", encoding="utf-8")
    (tmp_path / "gradio" / "x").mkdir(parents=True)
    tried = 0
    for path in (private, beside, elsewhere, Path("/etc/passwd")):
        for spelling in [*spellings(path, tmp_path / "gradio"), path.name]:
            for route in (
                "/file=",
                "/file/",
                "/gradio_api/file=",
                "/gradio_api/file/",
                "/%66ile=",
                "//file=",
                "/proxy=",
            ):
                status, content = raw_get(client, route + spelling)
                assert status in (400, 404), (route + spelling, status, content[:100])
                tried += 1
    count("addresses", tried)


def test_a_webui_s_page_keeps_the_workspace_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts let gradio hand out all of their data folder. What gradio 3 makes of `..` is the host's matter."""
    import httpx

    from lora_train.hosts import webui

    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    workspace = tmp_path / "outputs" / "train_tools"
    private = workspace / "projects" / "P" / "project.json"
    private.parent.mkdir(parents=True)
    private.write_text("{}", encoding="utf-8")
    picture = tmp_path / "outputs" / "txt2img.txt"
    picture.write_text("of the host", encoding="utf-8")
    with gradio.Blocks(analytics_enabled=False) as page:
        gradio.HTML("page")
    _, address, _ = page.launch(
        prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", allowed_paths=[str(tmp_path)]
    )
    try:
        route = "/gradio_api/file=" if GENERATION > 4 else "/file="
        with httpx.Client(base_url=address, trust_env=False, timeout=30) as client:
            assert client.get(f"{route}{private}").status_code == 200, "the danger is gone, and this test too"
            webui.keep_private(page, SimpleNamespace(workspace=SimpleNamespace(root=workspace)))
            assert client.get(f"{route}{private}").status_code == 403
            assert client.get(f"{route}{picture}").text == "of the host"
            if GENERATION > 3:
                around = f"{route}{tmp_path}/x/../outputs/train_tools/projects/P/project.json"
                assert raw_get(client, around)[0] == 403
    finally:
        page.close(verbose=False)


def test_no_page_is_no_page_to_keep_private() -> None:
    from lora_train.hosts import webui

    webui.keep_private(None, SimpleNamespace(workspace=SimpleNamespace(root=Path("x"))))


@pytest.mark.parametrize("upload", ["dataset_upload", "regularisation_upload", "preset_upload"])
def test_an_upload_can_not_name_a_file_of_the_server(open_page: OpenPage, tmp_path: Path, upload: str) -> None:
    """gradio 3 copies any file that a caller calls an upload; later ones refuse it with an error."""
    client = open_page()
    picture = tmp_path / "secret.png"
    Image.new("RGB", (64, 64), "red").save(picture)
    text = tmp_path / "secret.txt"
    text.write_text("secret words", encoding="utf-8")
    preset = tmp_path / "secret.json"
    preset.write_bytes(preset_path("character").read_bytes())
    before = files(client.app.workspace.root)
    for path in (picture, text, preset):
        for spelling in (str(path), f"{tmp_path}/gradio/../{path.name}"):
            answer = send_upload(client, upload, {"name": spelling, "path": spelling})
            assert "secret words" not in answer.text
    assert files(client.app.workspace.root) == before


def test_what_was_uploaded_is_taken(open_page: OpenPage) -> None:
    client = open_page()
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(stream, "PNG")
    api = "/gradio_api" if GENERATION > 4 else ""
    kept = client.post(f"{api}/upload", files={"files": ("cat.png", stream.getvalue(), "image/png")}).json()[0]
    answer = send_upload(client, "dataset_upload", {"name": kept, "orig_name": "cat.png", "path": kept})
    assert answer.status_code == 200
    assert client.app.datasets.originals("P", "v1").keys() == {"cat.png"}


@pytest.mark.skipif(GENERATION < 4, reason="gradio 3 knows no limit; docs/security.md says so")
def test_no_upload_is_larger_than_an_archive_may_be(
    open_page: OpenPage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert archives.LARGEST_TOTAL_BYTES == 4 * 2**30, "as docs/security.md says"
    monkeypatch.setattr(archives, "LARGEST_TOTAL_BYTES", 2**20)
    client = open_page()
    path = ("/gradio_api" if GENERATION > 4 else "") + "/upload"
    assert client.post(path, files={"files": ("a.zip", bytes(2**20))}).status_code == 200
    answer = client.post(path, files={"files": ("b.zip", bytes(2 * 2**20))})
    assert answer.status_code == 413
    assert [path.name for path in (tmp_path / "gradio").rglob("*.zip")] == ["a.zip"], "nothing of it stays"


@pytest.mark.parametrize(
    ("site", "status"), [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200), (None, 200)]
)
def test_another_site_uploads_nothing(open_page: OpenPage, tmp_path: Path, site: str | None, status: int) -> None:
    """A form of any page could else fill the disk; the browser tells where it is."""
    client = open_page()
    path = ("/gradio_api" if GENERATION > 4 else "") + "/upload"
    headers = {} if site is None else {"Sec-Fetch-Site": site}
    assert client.post(path, files={"files": ("a.zip", b"x")}, headers=headers).status_code == status
    assert len([*(tmp_path / "gradio").rglob("a.zip")]) == (status == 200)
    assert client.get("/config", headers=headers).status_code == 200


@pytest.mark.skipif(GENERATION > 3, reason="only gradio 3 calls the page's handlers through a WebSocket")
def test_another_site_opens_no_socket(open_page: OpenPage) -> None:
    address = urlsplit(str(open_page().base_url)).netloc
    connection = http.client.HTTPConnection(address, timeout=30)
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    sent = {**headers, "Sec-WebSocket-Key": key, "Sec-Fetch-Site": "cross-site"}
    connection.request("GET", "/queue/join", headers=sent)
    assert connection.getresponse().status == 403
    connection.close()


def files(folder: Path) -> list[Path]:
    """But locks, which say nothing and stay."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("lock"))


def send_upload(client: Any, upload: str, file: dict[str, Any]) -> Any:
    """Call the page's own handler of an upload, as a script could."""
    config = client.get("/config").json()
    own = next(one["id"] for one in config["components"] if one["props"].get("elem_id") == f"train_tools_{upload}")
    number, dependency = next(
        (number, one)
        for number, one in enumerate(config["dependencies"])
        if any((target[0] if isinstance(target, list) else target) == own for target in one["targets"])
    )
    sent = {**file, "data": None, "is_file": True, "meta": {"_type": "gradio.FileData"}}
    shown = next(
        one["id"]
        for one in config["components"]
        if one["props"].get("value") == "" and one["id"] in dependency["inputs"]
    )
    data = [[sent] if one == own else "P/v1" if one == shown else "" for one in dependency["inputs"]]
    api = "/gradio_api" if GENERATION > 4 else ""
    return client.post(f"{api}/run/predict", json={"fn_index": number, "data": data, "session_hash": "x"})
