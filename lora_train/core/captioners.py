"""The captioners that can be downloaded, and which of them are there: those that we know, each pinned to one revision,
and any other of the Hugging Face hub by its name, or by NAME@REVISION.

Nothing heavy is imported to find that out: packages are looked for by name, models by their folders.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from lora_train.core.caption_settings import CaptionerKind
from lora_train.core.errors import ModelError

_PACKAGES: dict[CaptionerKind, tuple[str, ...]] = {"wd14": ("onnxruntime",), "blip": ("torch", "transformers")}
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
"""Of an image-to-text model of transformers."""

_HUB_ID = re.compile(r"(?=.{,96}$)(?!.*(--|\.\.))\w([\w.-]*\w)?/\w([\w.-]*\w)?", re.ASCII)
"""The hub's own rule, so that a name with its slash as two dashes is the name of one folder and of no other."""
_REVISION = re.compile(r"(?=.{,64}$)(?!.*\.\.)\w([\w.-]*\w)?", re.ASCII)
"""A commit, a tag or a branch without slashes."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


class CaptionerFile(msgspec.Struct, frozen=True):
    name: str
    size_bytes: int
    sha256: str = ""
    """Empty where no two sources agree on it: the checksum that the hub itself tells is then held against the file."""


class CaptionerModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model on the Hugging Face hub."""

    name: str
    """By which it is asked for: a short one of our own, or that of the repository, with @ and the revision if a person
    gave one.
    """
    kind: CaptionerKind
    label: str
    good_for: str = ""
    repository: str
    revision: str = ""
    """A commit, tag or branch; empty for the newest commit at the time of the download."""
    files: tuple[CaptionerFile, ...] = ()
    """Empty where only the hub knows them."""

    @property
    def folder_name(self) -> str:
        return self.name.replace("/", "--")

    @property
    def size_bytes(self) -> int:
        """Of the whole download; 0 where only the hub knows it."""
        return sum(file.size_bytes for file in self.files)


_WD14_TAGS = CaptionerFile(
    "selected_tags.csv", 308_468, "298633d94d0031d2081c0893f29c82eab7f0df00b08483ba8f29d1e979441217"
)

MODELS = (
    CaptionerModel(
        name="wd-vit-tagger-v3",
        kind="wd14",
        label="WD14 tagger (ViT)",
        good_for="Tags: good for drawings, and fair for photographs.",
        repository="SmilingWolf/wd-vit-tagger-v3",
        revision="7f6b584d0bd3f55c4531f14ba3d4761b2bccdc0f",
        files=(
            CaptionerFile(
                "model.onnx", 378_536_310, "35f23693620b668f4d53fd3c62bf65e40af739bc52c7eb0fbc49258b58d065b6"
            ),
            _WD14_TAGS,
        ),
    ),
    CaptionerModel(
        name="wd-swinv2-tagger-v3",
        kind="wd14",
        label="WD14 tagger (SwinV2)",
        good_for="The same tags by a larger model, which is a little surer and slower.",
        repository="SmilingWolf/wd-swinv2-tagger-v3",
        revision="627aef95638667ddcaa3ac8ae625e88ea5b02f51",
        files=(
            CaptionerFile(
                "model.onnx", 467_460_978, "e6774bff34d43bd49f75a47db4ef217dce701c9847b546523eb85ff6dbba1db1"
            ),
            _WD14_TAGS,
        ),
    ),
    CaptionerModel(
        name="blip-image-captioning-base",
        kind="blip",
        label="BLIP",
        good_for="A sentence: good for photographs.",
        repository="Salesforce/blip-image-captioning-base",
        revision="82a37760796d32b1411fe092ab5d4e227313294b",
        files=(
            CaptionerFile("config.json", 4_563),
            CaptionerFile("preprocessor_config.json", 287),
            CaptionerFile(
                "special_tokens_map.json", 125, "b6d346be366a7d1d48332dbc9fdf3bf8960b5d879522b7799ddba59e76237ee3"
            ),
            CaptionerFile(
                "tokenizer.json", 711_396, "d241a60d5e8f04cc1b2b3e9ef7a4921b27bf526d9f6050ab90f9267a1f9e5c66"
            ),
            CaptionerFile("tokenizer_config.json", 506),
            CaptionerFile("vocab.txt", 231_508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
            CaptionerFile(
                "pytorch_model.bin", 989_820_849, "d6638651a5526cc2ede56f2b5104d6851b0755816d220e5e046870430180c767"
            ),
        ),
    ),
)
"""Of each kind the one that is proposed for a download first."""


def find_model(name: str, kind: CaptionerKind | None = None) -> CaptionerModel:
    """One of the list by its name; with a `kind`, any of the hub by that of its repository, or by NAME@REVISION.

    Raises ModelError for a name that is neither.
    """
    name = name.strip()
    repository, _, revision = name.partition("@")
    for model in MODELS:
        is_asked_for = (model.repository, model.kind) == (repository, kind) and revision in ("", model.revision)
        if model.name == name or is_asked_for:
            return model
    if kind is not None and is_hub_name(name):
        return _unknown_model(name, kind)
    raise ModelError(f"There is no captioner {name!r}.", f"Known are {', '.join(model.name for model in MODELS)}.")


def _unknown_model(name: str, kind: CaptionerKind) -> CaptionerModel:
    repository, _, revision = name.partition("@")
    return CaptionerModel(name=name, kind=kind, label=name, repository=repository, revision=revision)


def missing_packages(kind: CaptionerKind) -> tuple[str, ...]:
    """The Python packages that this kind of captioner needs and this Python lacks."""
    return tuple(package for package in _PACKAGES[kind] if importlib.util.find_spec(package) is None)


def folder_of(model: CaptionerModel, captioners_dir: Path, environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where the model is, whole: below `captioners_dir`, or in the hub's cache; None for nowhere.

    It has our revision, where we know one; else that which was fetched last.
    """
    places = (captioners_dir / model.folder_name, _in_hub_cache(model, environment))
    return next((place for place in places if is_whole(model, place)), None)


def has_model(kind: CaptionerKind, folder: Path) -> bool:
    """Whether a person's own folder holds what a captioner of this kind is made of."""
    if kind == "wd14":
        return all((folder / name).is_file() for name in ("model.onnx", "selected_tags.csv"))
    return (folder / "config.json").is_file() and any(any(folder.glob(pattern)) for pattern in _WEIGHTS)


def is_commit(revision: str) -> bool:
    """Whether it names one state of a repository for good, as a tag and a branch do not."""
    return _COMMIT.fullmatch(revision) is not None


def is_hub_name(typed: str) -> bool:
    """Whether it looks like `organisation/model` or `organisation/model@revision`, and is no folder here."""
    repository, at, revision = typed.strip().partition("@")
    is_name = _HUB_ID.fullmatch(repository) is not None and (not at or _REVISION.fullmatch(revision) is not None)
    return is_name and not Path(typed.strip()).is_dir()


def typed_folder(
    typed: str, kind: CaptionerKind, captioners_dir: Path, environment: Mapping[str, str] = os.environ
) -> Path | None:
    """The folder that a person typed, whether it is there or not. That of a name on the hub is where it was downloaded
    to, or in the hub's cache of this machine; None for nowhere.
    """
    if not is_hub_name(typed):
        return Path(typed.strip()).expanduser()
    models = (find_model(typed, kind), _unknown_model(typed.strip(), kind))  # of one we know, any revision will do
    folders = (folder_of(model, captioners_dir, environment) for model in models)
    return next((folder for folder in folders if folder is not None), None)


def is_whole(model: CaptionerModel, folder: Path) -> bool:
    """Sizes tell; the checksums were held against the files when they came."""
    if not model.files:
        return has_model(model.kind, folder)
    try:
        return all((folder / file.name).stat().st_size == file.size_bytes for file in model.files)
    except OSError:
        return False


def _in_hub_cache(model: CaptionerModel, environment: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps the snapshot: <cache>/models--ORG--NAME/snapshots/<revision>."""
    folder = _hub_cache(environment) / f"models--{model.repository.replace('/', '--')}"
    revision = model.revision
    if not is_commit(revision):
        try:
            revision = (folder / "refs" / (revision or "main")).read_text(encoding="utf-8").strip()
        except OSError:
            revision = ""
    return folder / "snapshots" / (revision or "none")


def _hub_cache(environment: Mapping[str, str]) -> Path:
    """As huggingface_hub finds it: HF_HUB_CACHE (formerly HUGGINGFACE_HUB_CACHE), HF_HOME, XDG_CACHE_HOME."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environment.get(name):
            return Path(environment[name]).expanduser()
    if environment.get("HF_HOME"):
        return Path(environment["HF_HOME"]).expanduser() / "hub"
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "huggingface" / "hub"
