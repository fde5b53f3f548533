"""What the Hugging Face hub has of a captioner, and its bytes, by huggingface_hub in any version from 0.25 to 2.

Its `hf_hub_download` is left alone, because newer ones throw a half file away when they end. `http_get`, by which it
gets the bytes, goes on at the end of a file in all of them, and is as easily interrupted. HF_ENDPOINT, HF_HUB_OFFLINE,
proxies and certificates are the library's own matter.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from lora_train.core.captioners import CaptionerModel, is_commit
from lora_train.core.errors import ModelError
from lora_train.core.installing import install_command

_CHECK_MIRROR = "Check HF_ENDPOINT, if you use a mirror. "
OWN_FOLDER = "Or put the model's files into a folder and give that in the settings."

_ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_ENABLE_HF_TRANSFER": "0",  # it can neither go on with a half file nor be interrupted
}
"""Read by the library when it is imported."""
_CHUNK_BYTES = 64 * 1024
"""What comes at once, and is lost when the connection breaks. The library's own 10 MB take a slow line minutes."""
_LISTING_LIMIT_S = 30.0
_NOT_FOUND, _TOO_MANY_REQUESTS, _SERVER_ERROR = 404, 429, 500

_PARTS = re.compile(r"\w[\w.-]*\.(json|model)|vocab\.txt|merges\.txt|chat_template\.jinja")
"""Of an image-to-text model, all but its weights. No code, and no folder."""
_WEIGHTS = (
    re.compile(r"model\.safetensors"),
    re.compile(r"model-\d+-of-\d+\.safetensors"),
    re.compile(r"pytorch_model\.bin"),
    re.compile(r"pytorch_model-\d+-of-\d+\.bin"),
)
"""The first of these that a model has is enough."""


class HubFile(NamedTuple):
    name: str
    size_bytes: int
    checksum: str
    """SHA-256 of a large file; of a small one git's, SHA-1 over a header and the file."""


class Broken(Exception):  # noqa: N818  (never leaves this room)
    """The connection ended too early, or there was none; another try may help."""


def endpoint() -> str:
    """The address of the hub, or of the mirror that HF_ENDPOINT names."""
    return _library().constants.ENDPOINT


def list_files(model: CaptionerModel, revision: str) -> tuple[str, list[HubFile]]:
    """The commit of the revision (the newest one for ""), and the files that make this kind of captioner. What we
    know of a file goes before what the hub tells.

    Raises ModelError where the hub refuses the model, gives another commit than was asked for, or the model is no such
    captioner; Broken.
    """
    with _explained(model.label, model.repository):
        told = _library().model_info(
            model.repository,
            revision=revision or None,
            files_metadata=True,
            timeout=_LISTING_LIMIT_S,
            token=_token(model),
        )
        offered = {file.rfilename: _hub_file(file) for file in told.siblings or ()}
    if is_commit(revision) and told.sha != revision:
        raise ModelError(
            f"{endpoint()} answers with commit {told.sha} of {model.repository} instead of {revision}.",
            _CHECK_MIRROR + OWN_FOLDER,
        )
    known = {file.name: file for file in model.files}
    files: list[HubFile] = []
    for name in known or _needed(model, offered):
        if name not in offered:
            raise ModelError(f"{name} of {model.label} is not on {endpoint()}.", _CHECK_MIRROR + OWN_FOLDER)
        size_bytes = known[name].size_bytes if name in known else offered[name].size_bytes
        checksum = (known[name].sha256 if name in known else "") or offered[name].checksum
        files.append(HubFile(name, size_bytes, checksum))
    return str(told.sha), files


def fetch(model: CaptionerModel, commit: str, name: str, size_bytes: int, path: Path) -> None:
    """Append to `path` what it lacks of a file. Raises ModelError where the hub refuses it, OSError of the disk,
    Broken, after some tries where the library makes them.
    """
    hub = _library()
    from huggingface_hub.file_download import http_get

    headers = hub.utils.build_hf_headers(token=_token(model)) | {"Accept-Encoding": "identity"}
    with _explained(f"{name} of {model.label}", model.repository), path.open("ab") as stream:
        http_get(
            hub.hf_hub_url(model.repository, name, revision=commit),
            stream,
            resume_size=stream.tell(),
            headers=headers,
            expected_size=size_bytes,
        )


def _library() -> ModuleType:
    """Raises ModelError where it is missing."""
    os.environ.update(_ENVIRONMENT)
    try:
        import huggingface_hub
        from huggingface_hub import constants, utils  # noqa: F401  (attributes of the package from now on)
    except ImportError:
        hint = f"Install with: {install_command(('huggingface_hub',))}"
        raise ModelError("Downloads need huggingface_hub, which this Python has not.", hint) from None
    constants.DOWNLOAD_CHUNK_SIZE = _CHUNK_BYTES
    return huggingface_hub


def _token(model: CaptionerModel) -> bool | None:
    """The models that we propose are everybody's. For others the library sends the token of who has logged in, as it
    does everywhere, since some are given only to who has asked for them.
    """
    return False if model.files else None


def _hub_file(file: object) -> HubFile:
    """From what the library calls a sibling. Raises AttributeError, TypeError where the server is no hub."""
    large = getattr(file, "lfs", None)
    checksum = large.sha256 if large is not None else file.blob_id  # type: ignore[attr-defined]
    return HubFile(file.rfilename, int(file.size), str(checksum))  # type: ignore[attr-defined]


def _needed(model: CaptionerModel, offered: Mapping[str, HubFile]) -> list[str]:
    """The files that are needed of a model that we don't know. Raises ModelError where it is of another kind."""
    if model.kind == "wd14":
        needed, what = ["model.onnx", "selected_tags.csv"], "a WD14 tagger"
        lacking = [name for name in needed if name not in offered]
    else:
        parts = [name for name in offered if _PARTS.fullmatch(name) and not name.endswith(".index.json")]
        kinds = ([name for name in offered if pattern.fullmatch(name)] for pattern in _WEIGHTS)
        weights = next((names for names in kinds if names), [])
        index = f"{re.sub('-[0-9]+-of-[0-9]+', '', weights[0])}.index.json" if weights else ""
        needed, what = parts + weights + [name for name in (index,) if name in offered], "an image-to-text model"
        lacking = [] if "config.json" in parts else ["config.json"]
        lacking += (
            [] if {"preprocessor_config.json", "processor_config.json"} & set(parts) else ["preprocessor_config.json"]
        )
        lacking += [] if weights else ["model.safetensors"]
    if lacking:
        raise ModelError(
            f"{model.repository} is not {what}: it has no {' and no '.join(lacking)}.", "Choose another model."
        )
    return needed


@contextmanager
def _explained(what: str, repository: str) -> Generator[None, None, None]:
    """What the library raises, in words for the person who wanted the model; Broken where another try may help."""
    utils = _library().utils
    try:
        yield
    except utils.OfflineModeIsEnabled:
        raise ModelError("HF_HUB_OFFLINE is set: nothing is downloaded.", "Start without it. " + OWN_FOLDER) from None
    except utils.GatedRepoError:
        raise ModelError(
            f"{repository} is given only to those whom its owner lets in.",
            "Ask for it on its page, log in with `hf auth login` (formerly `huggingface-cli login`), and try again.",
        ) from None
    except utils.RepositoryNotFoundError:
        raise ModelError(
            f"{repository} is not on {endpoint()}, or not for everybody.", "Check its name. " + OWN_FOLDER
        ) from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ModelError(f"{endpoint()} does not answer as a hub does.", _CHECK_MIRROR + OWN_FOLDER) from None
    except Exception as error:  # of huggingface_hub or the library for HTTP that it uses
        code = getattr(getattr(error, "response", None), "status_code", 0)
        if code == _TOO_MANY_REQUESTS or code >= _SERVER_ERROR:
            raise Broken(f"the server answers {code}") from None
        if code:
            why = "does not have it" if code == _NOT_FOUND else "refuses it"
            raise ModelError(
                f"{what} can't be downloaded: {endpoint()} {why} ({code}).", _CHECK_MIRROR + OWN_FOLDER
            ) from None
        if not _is_of_network(error):
            raise
        raise Broken(_reason(error)) from None


def _is_of_network(error: Exception) -> bool:
    """The errors of requests are OSErrors as those of the disk are, but have no number."""
    if isinstance(error, OSError):
        return error.errno is None
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2")


def _reason(error: BaseException) -> str:
    """The innermost of the errors that led to each other, which is the system's own where there is one."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), "") or type(error).__name__
    return str(reason).rstrip(".")
