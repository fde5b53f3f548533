"""Pictures from the host's own txt2img, under its queue lock, with LoRAs that need not be in its folder.

Call names and arguments: modules/processing.py, sd_samplers.py and extensions-builtin/Lora of A1111 1.10 and Forge.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

from lora_train.core.errors import JobError, ModelError
from lora_train.core.host import HostPicture
from lora_train.core.jobs import RequestedEnd
from lora_train.data.prompts import without_tags

_TABLES = ("available_networks", "available_network_aliases")
"""Of the host's LoRA extension: what a name in a prompt stands for."""
_CONSOLE = "The WebUI's console says more; or let Train Tools draw."


def samplers() -> tuple[str, ...]:
    """The host's names; where schedules are chosen apart, then each name with each schedule that it can have."""
    visible = [str(sampler.name) for sampler in _host_module("sd_samplers").visible_samplers()]
    return tuple(dict.fromkeys((*visible, *(f"{name} {label}" for name in _scheduled(visible) for label in _labels()))))


def draw(
    picture: HostPicture,
    *,
    lock: AbstractContextManager[Any],
    is_card_in_use: Callable[[], bool],
    run: Callable[[Callable[[], Any]], Any],
) -> list[Any]:
    """PIL pictures, each with its parameters in `info["parameters"]`. `run` calls where the host draws its pictures.

    Raises ModelError where the host can't draw it, JobError while a training has the card, RequestedEnd when a person
    interrupts it in the WebUI.
    """
    if picture.sampler not in samplers():
        raise ModelError(f"{picture.sampler} is none of the WebUI's samplers.", "Choose another sampling method.")
    title = _checkpoint_title(picture.base_model)
    with lock:
        if is_card_in_use():
            raise JobError("A training has the card.", "Let the WebUI draw when it has ended.")
        with _lent(picture.loras) as networks:
            if others := [path for path in map(Path, picture.loras) if _is_another(path)]:
                _forget(others, picture, title, run)
            processed = _process(picture, title, run)
            _check_drawn_with(picture, networks)
    return _pictures(processed, picture)


def loaded_base_model() -> Path | None:
    """The checkpoint that the host has loaded; None where there is none. Loads none."""
    model = getattr(_host_module("sd_models").model_data, "sd_model", None)
    filename = getattr(getattr(model, "sd_checkpoint_info", None), "filename", None)
    return Path(filename) if filename else None


def _process(picture: HostPicture, title: str, run: Callable[[Callable[[], Any]], Any]) -> Any:
    processing, shared = _host_module("processing"), _host_module("shared")
    p = processing.StableDiffusionProcessingTxt2Img(**_arguments(picture, title))
    shared.state.begin(job="train_tools")
    try:
        with closing(p):
            processed = run(lambda: processing.process_images(p))
        if any(getattr(shared.state, name, False) for name in ("interrupted", "skipped", "stopping_generation")):
            raise RequestedEnd("stop")
    except RequestedEnd:
        raise
    except Exception as error:  # the host's own code
        raise ModelError(f"The WebUI could not draw: {error or type(error).__name__}.", _CONSOLE) from error
    finally:
        shared.state.end()
        for name in ("interrupted", "skipped", "stopping_generation"):
            setattr(shared.state, name, False)
        shared.total_tqdm.clear()
    return processed


def _arguments(picture: HostPicture, title: str) -> dict[str, Any]:
    sampler, scheduler = _split(picture.sampler)
    return {
        "prompt": picture.prompt,
        "negative_prompt": picture.negative_prompt,
        "seed": picture.seed,
        "sampler_name": sampler,
        "batch_size": picture.count,
        "n_iter": 1,
        "steps": picture.steps,
        "cfg_scale": picture.cfg_scale,
        "width": picture.width_px,
        "height": picture.height_px,
        "do_not_save_samples": True,
        "do_not_save_grid": True,
        "override_settings": {"sd_model_checkpoint": title, "CLIP_stop_at_last_layers": picture.clip_skip},
        "override_settings_restore_afterwards": True,
        **({"scheduler": scheduler} if scheduler else {}),
    }


def _pictures(processed: Any, picture: HostPicture) -> list[Any]:
    """Those of the batch, without a grid of them."""
    count = picture.count
    first = int(getattr(processed, "index_of_first_image", 0))
    images = list(getattr(processed, "images", []))[first : first + count]
    if len(images) != count:
        raise ModelError(f"The WebUI gave {len(images)} of {count} pictures.", _CONSOLE)
    texts = list(getattr(processed, "infotexts", []))[first : first + count]
    for image, text in zip(images, texts, strict=False):
        image.info["parameters"] = _with_tags(str(text), picture.prompt)
    return images


def _with_tags(text: str, prompt: str) -> str:
    """Parameters with the prompt as it was asked for: without scripts, A1111 leaves LoRA tags out there."""
    bare = without_tags(prompt).strip()
    if text.startswith(prompt) or not text.startswith(bare):
        return text
    return prompt + text[len(bare) :]


# --- checkpoints and samplers ---


def _checkpoint_title(base_model: str) -> str:
    """What the host calls the checkpoint at this path. Raises ModelError for one that it does not list."""
    wanted = Path(base_model).resolve()
    for info in list(_host_module("sd_models").checkpoints_list.values()):
        if Path(info.filename).resolve() == wanted:
            return str(info.title)
    raise ModelError(
        f"The WebUI does not list {base_model} among its checkpoints.",
        "Move it into the WebUI's checkpoint folder, or let Train Tools draw.",
    )


def _labels() -> list[str]:
    """Of the schedules that are chosen apart from the sampler; none where the host has them in the samplers' names."""
    if importlib.util.find_spec("modules.sd_schedulers") is None:
        return []
    found = [str(scheduler.label) for scheduler in _host_module("sd_schedulers").schedulers]
    return [label for label in found if label != "Automatic"]


def _scheduled(visible: Sequence[str]) -> list[str]:
    """The samplers that take schedules."""
    if importlib.util.find_spec("modules.sd_samplers_kdiffusion") is None:
        return []
    able = {sampler.name for sampler in _host_module("sd_samplers_kdiffusion").samplers_data_k_diffusion}
    return [name for name in visible if name in able]


def _split(name: str) -> tuple[str, str]:
    """ "DPM++ 2M Karras" -> the sampler and the label of its schedule, which is empty where this host has none."""
    if name in {sampler.name for sampler in _host_module("sd_samplers").visible_samplers()}:
        return name, "Automatic" if _labels() else ""
    label = next((label for label in _labels() if name.endswith(f" {label}")), "")
    return name.removesuffix(f" {label}"), label


# --- LoRAs ---


@contextmanager
def _lent(loras: Sequence[str]) -> Iterator[Any]:
    """Let these files be found under their stems in prompts while entered; gives the host's LoRA module."""
    networks = sys.modules.get("networks")  # the host's LoRA extension is known by this name
    if not loras:
        yield networks
        return
    if networks is None:
        raise ModelError("The WebUI's own LoRA extension is switched off.", "Switch it on, or let Train Tools draw.")
    tables = [getattr(networks, name) for name in _TABLES]
    before = [dict(table) for table in tables]
    try:
        for path in map(Path, loras):
            entry = networks.network.NetworkOnDisk(path.stem, str(path))
            for table in tables:
                table[path.stem] = entry
        yield networks
    finally:
        for table, old in zip(tables, before, strict=True):
            for stem in (Path(path).stem for path in loras):
                table.pop(stem, None)
                if stem in old:
                    table[stem] = old[stem]


_last_lent: dict[str, tuple[str, int]] = {}
"""Stem -> path and time (ns) of the file that was lent under this name."""


def _is_another(path: Path) -> bool:
    """Whether another file was lent under this name before."""
    known, now = _last_lent.get(path.stem), (str(path), path.stat().st_mtime_ns)
    _last_lent[path.stem] = now
    return known is not None and known != now


def _forget(loras: Sequence[Path], picture: HostPicture, title: str, run: Callable[[Callable[[], Any]], Any]) -> None:
    """Let the host take LoRAs off its model: one that has the same name and weight would not be read again.

    A picture without it does that, however small.
    """
    bare = HostPicture(
        prompt="",
        negative_prompt="",
        width_px=64,
        height_px=64,
        sampler=picture.sampler,
        steps=1,
        cfg_scale=1.0,
        seed=1,
        base_model=picture.base_model,
    )
    _process(bare, title, run)
    networks = sys.modules.get("networks")
    for path in loras:
        getattr(networks, "networks_in_memory", {}).pop(path.stem, None)


def _check_drawn_with(picture: HostPicture, networks: Any) -> None:
    """Raises ModelError where the host drew without a LoRA or with another checkpoint: it tells that nobody else."""
    loaded = {network.name for network in getattr(networks, "loaded_networks", [])}
    for path in map(Path, picture.loras):
        if path.stem not in loaded:
            raise ModelError(f"The WebUI could not load {path.name}, and drew without it.", _CONSOLE)
    drawn_with = loaded_base_model()
    if drawn_with is not None and drawn_with.resolve() != Path(picture.base_model).resolve():
        raise ModelError(f"The WebUI drew with {drawn_with.name} instead of {Path(picture.base_model).name}.", _CONSOLE)


def _host_module(name: str) -> Any:
    return importlib.import_module(f"modules.{name}")
