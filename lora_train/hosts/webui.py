"""Automatic1111's WebUI, and what all of its kind have in common: settings, folders, lists, the model on the card.

Modules of the host are looked up when they are needed: they differ from host to host, and some are not there.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from lora_train.app import App
from lora_train.core.caption_settings import CaptionSettings
from lora_train.core.host import BaseModelChoice, DeviceMemory, HostCaptioner, HostPicture
from lora_train.core.jobs import JobFolder
from lora_train.core.specs import OnCardSpec
from lora_train.core.workspace import Workspace
from lora_train.hosts import captioners, drawing
from lora_train.hosts.parking import Parking

WORKSPACE_OPTION = "train_tools_workspace"
LORA_FOLDER_OPTION = "train_tools_lora_folder"
AUTO_PUBLISH_OPTION = "train_tools_auto_publish"

_PARKING_LIMIT_S = 1.0
"""How long a start of the host may wait for a running training to be found again."""

_WORK = {
    "train": "training",
    "preview": "drawing previews",
    "regularisation": "drawing regularisation pictures",
    "judge": "judging LoRAs",
    "proof": "proving a LoRA",
}
"""What a job of the queue does, for the sentence that refuses a picture."""

_NO_DETAILS = "Train Tools is training on this card. Stop or pause it in the Train Tools tab, or wait for its end."
_log = logging.getLogger(__name__)


def host_module(name: str) -> Any:
    """The host's module `modules.<name>`. Raises ImportError where this host has none."""
    return importlib.import_module(f"modules.{name}")


class WebUI:
    """Automatic1111 (see `core.host.Host`)."""

    program = "Automatic1111"

    def __init__(self) -> None:
        self.name = f"{self.program} {_version()}".strip()
        self.describe_work: Callable[[], str] = lambda: ""
        """Says which training has the card and for how long, for the sentence that refuses a picture."""
        self._parking = Parking(
            unload=self._unload,
            reload=self._reload,
            lock=lambda: host_module("call_queue").queue_lock,
            refused=self._refused,
            postponed=self._postponed,
            sentence=self._refusal,
        )

    # --- what the host has ---

    def base_models(self) -> list[BaseModelChoice]:
        try:
            found = list(host_module("sd_models").checkpoints_list.values())
        except (ImportError, AttributeError):
            return []
        return [BaseModelChoice(str(info.name), str(info.filename)) for info in found]

    def refresh_base_models(self) -> None:
        try:
            host_module("sd_models").list_models()
        except Exception:  # the host's own code
            _log.exception("The WebUI could not list its checkpoints.")

    def lora_dir(self) -> Path | None:
        root = self.lora_root()
        return None if root is None else sub_folder(root, str(_option(LORA_FOLDER_OPTION, "")))

    def lora_root(self) -> Path | None:
        folder = getattr(_flags(), "lora_dir", None)
        if folder:
            return Path(folder).absolute()
        models_path = getattr(host_module("paths"), "models_path", None)
        return Path(models_path).absolute() / "Lora" if models_path else None

    def auto_publish(self) -> bool:
        return bool(_option(AUTO_PUBLISH_OPTION, True))

    def refresh_loras(self) -> None:
        networks = sys.modules.get("networks")  # the host's LoRA extension is known by this name
        try:
            if networks is not None:
                networks.list_available_networks()
        except Exception:  # the host's own code, over whatever lies in the folder
            _log.exception("The WebUI could not list its LoRAs.")

    def takes_paths(self) -> bool:
        flags = _flags()
        is_open = getattr(flags, "webui_is_non_local", True)
        return not is_open and not getattr(flags, "hide_ui_dir_config", False)

    # --- its txt2img ---

    def samplers(self) -> tuple[str, ...]:
        try:
            return drawing.samplers()
        except Exception:  # the host's own code
            _log.exception("Which samplers the WebUI has could not be found out.")
            return ()

    def draw(self, picture: HostPicture) -> list[Any]:
        lock = host_module("call_queue").queue_lock
        return drawing.draw(picture, lock=lock, is_card_in_use=self.is_parked, run=self._run_where_it_draws)

    def loaded_base_model(self) -> Path | None:
        try:
            return drawing.loaded_base_model()
        except Exception:  # as above
            _log.exception("Which checkpoint the WebUI has loaded could not be found out.")
            return None

    def _run_where_it_draws(self, work: Callable[[], Any]) -> Any:
        return work()

    # --- its captioners ---

    def captioners(self) -> tuple[HostCaptioner, ...]:
        try:
            return captioners.captioners()
        except Exception:  # the host's own code
            _log.exception("Which captioners the WebUI has could not be found out.")
            return ()

    def absent_captioners(self) -> tuple[HostCaptioner, ...]:
        try:
            return captioners.absent_captioners()
        except Exception:  # as above
            _log.exception("Whether the WebUI's captioners are there could not be found out.")
            return self.captioners()

    def open_captioner(
        self, kinds: tuple[HostCaptioner, ...], settings: CaptionSettings
    ) -> AbstractContextManager[Any]:
        lock = host_module("call_queue").queue_lock
        return captioners.open_captioner(kinds, settings, lock, lambda: self._parking.is_parked)

    # --- the model on the card ---

    def is_waiting_for_picture(self) -> bool:
        return self._parking.is_waiting

    def parked(self, device: str) -> AbstractContextManager[None]:
        return self._parking.parked() if self.shares_card(device) else nullcontext()

    def card_memory(self) -> DeviceMemory | None:
        try:
            return card_memory(host_module("devices").device)
        except Exception:  # torch's driver call, or a host whose device is told in another way
            _log.exception("How much memory the card has could not be found out.")
            return None

    def is_parked(self) -> bool:
        return self._parking.is_parked

    def shares_card(self, device: str) -> bool:
        """Whether a worker on this device needs the card that the host's model is on."""
        return shares_card(host_module("devices").device, device)

    def guard_again(self) -> None:
        """After a "Reload UI", in which other extensions put back functions of the host."""
        self._parking.guard_again()

    def _refused(self) -> list[tuple[Any, str]]:
        """Every picture of the page, the API and of scripts goes through the first; the other one loads a checkpoint.

        Many modules hold `process_images` itself by name, so that can't be the place.
        """
        return [(host_module("processing"), "process_images_inner"), (host_module("sd_models"), "load_model")]

    def _postponed(self) -> list[tuple[Any, str]]:
        """What the host calls when another checkpoint or VAE was chosen."""
        return [(host_module("sd_models"), "reload_model_weights"), (host_module("sd_vae"), "reload_vae_weights")]

    def _unload(self) -> None:
        sd_models = host_module("sd_models")
        data = sd_models.model_data  # not shared.sd_model, which loads one where there is none
        with getattr(data, "lock", nullcontext()):  # a checkpoint may be loading since the start
            models = [data.sd_model, *getattr(data, "loaded_sd_models", [])]
        for model in {id(model): model for model in models if model is not None}.values():
            sd_models.send_model_to_cpu(model)
        host_module("devices").torch_gc()

    def _reload(self) -> bool:
        host_module("devices").torch_gc()
        sd_models = host_module("sd_models")
        model = sd_models.model_data.sd_model  # not the one of before, which may be gone
        if model is not None:
            sd_models.send_model_to_device(model)
        return model is not None

    def _refusal(self) -> str:
        try:
            return self.describe_work() or _NO_DETAILS
        except Exception:  # whatever goes wrong with the description, the picture must be refused in words
            _log.exception("The running training could not be described.")
            return _NO_DETAILS


def shares_card(host_device: Any, device: str) -> bool:
    """Whether a worker on `device` ("auto", "cuda", ...) needs the card that the host's torch device is.

    The worker takes the first card of a kind.
    """
    if host_device is None or host_device.type == "cpu" or device == "cpu":
        return False
    return device in ("auto", host_device.type) and host_device.index in (None, 0)


def card_memory(host_device: Any) -> DeviceMemory | None:
    """By the host's own torch, where its model is on the card that a worker takes: what it keeps of the memory counts
    as free, since it is parked meanwhile. None elsewhere: asking would take some of another card.
    """
    torch = sys.modules.get("torch")
    if torch is None or not shares_card(host_device, "cuda") or not torch.cuda.is_initialized():
        return None
    free, total = torch.cuda.mem_get_info(0)
    return DeviceMemory(
        name=str(torch.cuda.get_device_name(0)),
        total_bytes=total,
        free_bytes=min(total, free + torch.cuda.memory_reserved(0)),
    )


def sub_folder(root: Path, relative: str) -> Path:
    """The folder of this name below `root`; `root` itself where the name would lead out of it."""
    wanted = Path(os.path.normpath(root / relative.strip()))
    if wanted.is_relative_to(root):
        return wanted
    _log.warning("The LoRA sub-folder %r leads out of %s, which is taken instead.", relative, root)
    return root


def workspace_dir() -> Path:
    """Where projects are kept: the folder of the settings, by default `outputs/train_tools` of the WebUI's data."""
    data_path = Path(host_module("paths").data_path).absolute()
    chosen = str(_option(WORKSPACE_OPTION, "")).strip()
    return data_path / Path(chosen).expanduser() if chosen else data_path / "outputs" / "train_tools"


def api_credentials() -> Sequence[tuple[str, str]]:
    """The pairs of `--api-auth user:password,user:password`."""
    pairs = [pair.partition(":") for pair in (getattr(_flags(), "api_auth", None) or "").split(",")]
    return [(user.strip(), password.strip()) for user, colon, password in pairs if colon]


def register_settings() -> None:
    """Our section of the host's settings page."""
    shared = host_module("shared")
    section = ("train_tools", "Train Tools")
    can_restrict = "restrict_api" in inspect.signature(shared.OptionInfo).parameters
    path_options: dict[str, Any] = {"section": section} | ({"restrict_api": True} if can_restrict else {})

    workspace = shared.OptionInfo("", "Workspace folder", **path_options)
    workspace.info("empty: outputs/train_tools in the WebUI's data folder").needs_reload_ui()
    lora_folder = shared.OptionInfo("", "LoRA sub-folder", **path_options)
    lora_folder.info("a folder below models/Lora for published LoRAs; empty: models/Lora itself")
    auto_publish = shared.OptionInfo(True, "Publish finished LoRAs by themselves", section=section)
    auto_publish.info("the last LoRA of a train is copied into the LoRA folder, with its card")

    shared.opts.add_option(WORKSPACE_OPTION, workspace)
    shared.opts.add_option(LORA_FOLDER_OPTION, lora_folder)
    shared.opts.add_option(AUTO_PUBLISH_OPTION, auto_publish)
    restricted = getattr(shared.opts, "restricted_opts", None)
    if isinstance(restricted, set):  # those that --hide-ui-dir-config locks
        restricted |= {WORKSPACE_OPTION, LORA_FOLDER_OPTION}


def describe_work(app: App) -> str:
    """The sentence that refuses a picture while a job has the card; empty where none is known."""
    running = next((entry for entry in app.queue.entries() if entry.state == "running"), None)
    if running is None:
        return ""
    eta_s = app.status(JobFolder(app.workspace.root / running.job)).eta_s
    minutes = max(1, round(eta_s / 60)) if eta_s is not None else 0
    wait = f"wait about {minutes} minute{'s' if minutes > 1 else ''}" if minutes else "wait for its end"
    work = _WORK[running.kind]
    return f"Train Tools is {work} on this card: {running.title}. Stop or pause it in the Train Tools tab, or {wait}."


_apps: dict[Path, App] = {}
"""By workspace. Survives "Reload UI", as the queue's thread and the parked model must."""
_hosts: list[WebUI] = []


def the_host(make: Callable[[], WebUI]) -> WebUI:
    """The one host of this process."""
    if not _hosts:
        _hosts.append(make())
    return _hosts[0]


def the_app(host: WebUI) -> App:
    """The one App for the workspace that the settings name."""
    folder = workspace_dir()
    if folder not in _apps:
        _apps[folder] = App(Workspace(folder), host)
    app = _apps[folder]
    host.describe_work = functools.partial(describe_work, app)
    return app


def keep_private(page: Any, app: App) -> None:
    """Leave the workspace out of what the host's page hands out by paths, which is all of its data folder.

    `page` is None without a page. What our own page shows comes by our own routes.
    """
    blocked = getattr(page, "blocked_paths", None)
    if isinstance(blocked, list):
        blocked.append(str(app.workspace.root))


def find_again(host: WebUI) -> None:
    """Take up a training that has outlived the WebUI, before the host loads its own model beside it onto the card."""
    try:
        app = the_app(host)
        running = next((entry.job for entry in app.queue.entries() if entry.state == "running"), None)
        if running is None:
            return
        job = JobFolder(app.workspace.root / running)
        spec = job.read_spec()
        is_for_card = isinstance(spec, OnCardSpec)
        if not is_for_card or not host.shares_card(spec.settings.device) or app.status(job).state != "running":
            return
        app.start_background()
        until = time.monotonic() + _PARKING_LIMIT_S
        while not host.is_parked() and time.monotonic() < until:
            time.sleep(0.02)
    except Exception:  # the host must start, whatever is in the workspace
        _log.exception("Whether a training runs could not be found out.")


def _flags() -> Any:
    return host_module("shared").cmd_opts


def _option(name: str, default: Any) -> Any:
    value = getattr(host_module("shared").opts, name, None)
    return default if value is None else value


def _version() -> str:
    """As the host's page tells it; empty where it can't be told."""
    try:
        return str(host_module("launch_utils").git_tag())
    except Exception:  # the host's own code, which asks git
        return ""
