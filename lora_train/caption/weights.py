"""Models of transformers from a folder: the class that its config names, and weights that can't run code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from lora_train.core.errors import ModelError
from lora_train.core.tensorfiles import read_tensor_file

_DOWNLOAD_AGAIN = "The download may be incomplete: download the model again."


class Kind(NamedTuple):
    """What a folder's `config.json` says of its model."""

    model_type: str
    class_name: str


def read_kind(folder: Path) -> Kind:
    """Raises ModelError where `config.json` can't be read or names no class."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
        return Kind(str(config["model_type"]), str(config["architectures"][0]))
    except OSError as error:
        raise ModelError(f"{path} can't be read ({error.strerror}).") from error
    except (ValueError, LookupError, TypeError) as error:
        raise ModelError(
            f"{path} does not name a model of transformers (model_type and architectures).",
            "Choose the folder of an image-to-text model, such as BLIP.",
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """The files with the model's weights, safetensors where there are any. Raises ModelError where there are none."""
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        if files := sorted(folder.glob(pattern)):
            return files
    raise ModelError(f"{folder} has no weights (model.safetensors or pytorch_model.bin).", _DOWNLOAD_AGAIN)


def load_model(folder: Path, kind: Kind) -> Any:
    """The model on the CPU, for evaluation.

    Code in the folder is never run, and pickled weights are looked through by `core.pickles` before torch opens them:
    versions of torch before 2.6 can be made to run code even where they load only weights.
    Raises ModelError for a class that transformers lacks, and for weights that are missing.
    """
    import transformers

    model_class: Any = getattr(transformers, kind.class_name, None)
    if model_class is None or not hasattr(model_class, "generate"):
        raise ModelError(
            f"{folder} needs {kind.class_name}, which transformers {transformers.__version__} does not have.",
            "Choose another model: code that comes with a model is never run.",
        )
    config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    files = weight_files(folder)
    options: dict[str, Any] = {"config": config, "output_loading_info": True}
    if files[0].suffix == ".safetensors":
        options |= {"local_files_only": True, "use_safetensors": True}
        model, info = model_class.from_pretrained(str(folder), **options)
    else:
        model, info = model_class.from_pretrained(None, state_dict=_read_pickled(files), **options)
        if (folder / "generation_config.json").is_file():
            model.generation_config = transformers.GenerationConfig.from_pretrained(str(folder), local_files_only=True)
    _require_weights(folder, model, set(info["missing_keys"]))
    return model.eval()


def _read_pickled(files: list[Path]) -> dict[str, Any]:
    import torch

    weights: dict[str, Any] = {}
    for path in files:
        read_tensor_file(path)  # raises where the pickle wants anything but tensors
        weights |= torch.load(path, map_location="cpu", weights_only=True)
    return weights


def _require_weights(folder: Path, model: Any, missing: set[str]) -> None:
    """A parameter is there when any of the names that it is tied under is; buffers make themselves."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    lacking = sorted(tied[0] for tied in names.values() if missing.issuperset(tied))
    if lacking:
        raise ModelError(f"{folder} lacks {len(lacking)} tensors, the first is {lacking[0]}.", _DOWNLOAD_AGAIN)
