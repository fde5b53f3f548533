"""Checkpoints, and the one "model": an object that knows its checkpoint and its device."""

from __future__ import annotations

import threading
import traceback
from pathlib import Path
from typing import Any

from modules import devices, paths, script_callbacks, shared


class CheckpointInfo:
    def __init__(self, root: Path, file: Path) -> None:
        self.filename = str(file)
        self.name = str(file.relative_to(root))
        self.name_for_extra = file.stem
        self.title = f"{self.name} [0123456789]"


class Model:
    """Moves as a torch module does; what was thrown away is on "meta" and can't come back."""

    def __init__(self, info: CheckpointInfo) -> None:
        self.sd_checkpoint_info = info
        self.lowvram = shared.cmd_opts.lowvram
        self.device = str(devices.cpu)
        self.moves: list[str] = []

    def to(self, device: Any) -> Model:
        if self.device == "meta" and str(device) != "meta":
            raise NotImplementedError("Cannot copy out of meta tensor; no data!")
        self.device = str(device)
        self.moves.append(self.device)
        return self


class ModelData:
    def __init__(self) -> None:
        self.sd_model: Model | None = None
        self.loaded_sd_models: list[Model] = []
        self.was_loaded_at_least_once = False
        self.lock = threading.Lock()

    def get_sd_model(self) -> Model | None:
        if self.was_loaded_at_least_once:
            return self.sd_model
        with self.lock:
            if self.sd_model is None and not self.was_loaded_at_least_once:
                try:
                    load_model()
                except Exception:
                    traceback.print_exc()
                    print("Stable diffusion model failed to load")
        return self.sd_model


checkpoints_list: dict[str, CheckpointInfo] = {}
model_data = ModelData()


def list_models() -> None:
    checkpoints_list.clear()
    own = Path(paths.models_path, "Stable-diffusion")
    for root in filter(None, (shared.cmd_opts.ckpt_dir, own)):
        root = Path(root).absolute()
        for file in sorted(path for path in root.rglob("*") if path.suffix in (".safetensors", ".ckpt")):
            info = CheckpointInfo(root, file)
            checkpoints_list[info.title] = info


def select_checkpoint() -> CheckpointInfo:
    wanted = shared.opts.sd_model_checkpoint
    infos = list(checkpoints_list.values())
    if not infos:
        raise FileNotFoundError("No checkpoints found.")
    return next((info for info in infos if wanted and wanted in (info.title, info.name, info.name_for_extra)), infos[0])


def load_model(checkpoint_info: CheckpointInfo | None = None) -> Model:
    info = checkpoint_info or select_checkpoint()
    if model_data.sd_model is not None:
        send_model_to_trash(model_data.sd_model)
        model_data.sd_model = None
        model_data.loaded_sd_models.clear()
    model = Model(info)
    send_model_to_device(model)
    model_data.sd_model = model
    model_data.loaded_sd_models.insert(0, model)
    model_data.was_loaded_at_least_once = True
    script_callbacks.call("model_loaded", model)
    return model


def reload_model_weights(sd_model: Model | None = None, info: CheckpointInfo | None = None) -> Model:
    info = info or select_checkpoint()
    model = sd_model or model_data.sd_model
    if model is not None and model.sd_checkpoint_info.filename == info.filename:
        return model  # wherever it is
    return load_model(info)


def send_model_to_cpu(model: Model) -> None:
    model.to(devices.cpu)
    devices.torch_gc()


def send_model_to_device(model: Model) -> None:
    if not model.lowvram:
        model.to(devices.device)


def send_model_to_trash(model: Model) -> None:
    model.to("meta")
