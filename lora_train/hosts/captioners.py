"""The captioners that a WebUI has itself: BLIP (`shared.interrogator`) and DeepDanbooru (`modules.deepbooru`).

Their lower functions are called, never `interrogate()`: that one resets the WebUI's progress and its interrupt flag
with every picture, and gives the text "<error>" instead of raising. Beams, lengths and the threshold are those of the
WebUI's settings. Forge's memory management loads and unloads by itself, so that its `unload` and `stop` do nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lora_train.core.caption_settings import CaptionSettings
from lora_train.core.errors import JobError, ModelError
from lora_train.core.host import HostCaptioner
from lora_train.data.captions import split_tags
from lora_train.data.images import open_picture

_MODEL_FILES: dict[HostCaptioner, tuple[str, str]] = {
    "blip": ("BLIP", "*.pth"),
    "deepbooru": ("torch_deepdanbooru", "*.pt"),
}
"""Where the WebUI keeps the model below its `models` folder."""
_NAMES: dict[HostCaptioner, str] = {"blip": "BLIP", "deepbooru": "DeepDanbooru"}
_OPTIONS: dict[HostCaptioner, tuple[str, ...]] = {
    "blip": ("interrogate_clip_num_beams", "interrogate_clip_min_length", "interrogate_clip_max_length"),
    "deepbooru": (
        *("interrogate_deepbooru_score_threshold", "deepbooru_sort_alpha", "deepbooru_use_spaces"),
        "deepbooru_filter_tags",
    ),
}
_ESCAPED = re.compile(r"\\([\\()])")
_log = logging.getLogger(__name__)


class _Model:
    """One of the two, loaded: a picture in, a caption out."""

    def __init__(self, kind: HostCaptioner, load: Callable[[], Any], unload: Callable[[], Any]) -> None:
        self.kind: HostCaptioner = kind
        self._load = load
        self._unload = unload

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Unloads in any case: a load that fails half-way leaves something behind."""
        try:
            try:
                self._load()
            except Exception as error:  # the host's own code; it may have to download first
                raise ModelError(
                    f"The WebUI could not load its {_NAMES[self.kind]}: {error or type(error).__name__}.",
                    "It downloads the model at the first use, so check the connection; or choose another captioner.",
                ) from error
            yield
        finally:
            try:
                self._unload()
            except Exception:  # the host's own code, with nothing loaded
                _log.exception("The WebUI could not unload its %s.", _NAMES[self.kind])


class HostModels:
    """What `Host.open_captioner` gives (`data.captioner.Captioner`)."""

    def __init__(self, describe: Sequence[Callable[[Any], str]], fingerprint: str) -> None:
        self._describe = describe
        self._fingerprint = fingerprint

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def captions(self, pictures: Iterable[Path]) -> Iterator[str]:
        """Raises DatasetError for a picture that can't be read, ModelError when the host can't caption it."""
        for path in pictures:
            picture = open_picture(path)
            try:
                parts = [describe(picture) for describe in self._describe]
            except Exception as error:  # the host's own code
                raise ModelError(
                    f"The WebUI could not caption {path.name}: {error or type(error).__name__}.",
                    "The WebUI's console says more; or choose another captioner.",
                ) from error
            yield ", ".join(part for part in parts if part)


def captioners() -> tuple[HostCaptioner, ...]:
    """Those that this host has; Forge Classic has none."""
    found: list[HostCaptioner] = []
    interrogator = getattr(_host_module("shared"), "interrogator", None)
    if all(hasattr(interrogator, name) for name in ("load", "generate_caption", "unload")):
        found.append("blip")
    if importlib.util.find_spec("modules.deepbooru") is not None:
        found.append("deepbooru")
    return tuple(found)


def absent_captioners() -> tuple[HostCaptioner, ...]:
    """Those of them whose model is not on the disk, so that the host would download it at the first use."""
    models = Path(_host_module("paths").models_path)
    return tuple(kind for kind in captioners() if not any((models / _MODEL_FILES[kind][0]).glob(_MODEL_FILES[kind][1])))


@contextmanager
def open_captioner(
    kinds: Sequence[HostCaptioner],
    settings: CaptionSettings,
    lock: AbstractContextManager[Any],
    is_card_in_use: Callable[[], bool],
) -> Iterator[HostModels]:
    """Load them under the host's queue lock, and give all back at the end.

    Raises ModelError for one that this host has not or can't load, JobError while a training has the card.
    """
    lacking = [_NAMES[kind] for kind in kinds if kind not in captioners()]
    if lacking:
        raise ModelError(f"This WebUI has no {' and no '.join(lacking)} of its own.", "Choose another captioner.")
    with lock, ExitStack() as stack:
        if is_card_in_use():
            raise JobError("A training has the card.", "Let the WebUI's captioners work when it has ended.")
        _make_room()
        describe: list[Callable[[Any], str]] = []
        for kind in sorted(kinds):  # the sentence before the tags
            model, one = _blip() if kind == "blip" else _deepbooru(settings)
            stack.enter_context(model.loaded())
            describe.append(one)
        yield HostModels(describe, _fingerprint(kinds, settings))


def _blip() -> tuple[_Model, Callable[[Any], str]]:
    interrogator = _host_module("shared").interrogator
    return _Model("blip", interrogator.load, interrogator.unload), lambda picture: _one_line(
        interrogator.generate_caption(picture)
    )


def _deepbooru(settings: CaptionSettings) -> tuple[_Model, Callable[[Any], str]]:
    model = _host_module("deepbooru").model
    is_escaped = bool(getattr(_host_module("shared").opts, "deepbooru_escape", True))
    excluded = {tag.casefold() for tag in split_tags(settings.excluded_tags)}

    def tags(picture: Any) -> str:
        text = _one_line(model.tag_multi(picture, force_disable_ranks=True))
        found = split_tags(_ESCAPED.sub(r"\1", text) if is_escaped else text)
        return ", ".join(tag for tag in found if tag.casefold() not in excluded)

    return _Model("deepbooru", model.start, model.stop), tags


def _make_room() -> None:
    """Move the parts of the host's model away that --medvram and --lowvram keep on the card."""
    try:
        _host_module("lowvram").send_everything_to_cpu()
        _host_module("devices").torch_gc()
    except Exception as error:  # not in every host, and its own code
        _log.debug("Nothing was moved away: %s", error)


def _fingerprint(kinds: Sequence[HostCaptioner], settings: CaptionSettings) -> str:
    options = _host_module("shared").opts
    told = [f"{name}={getattr(options, name, '')}" for kind in sorted(kinds) for name in _OPTIONS[kind]]
    return " ".join(["host", *sorted(kinds), *told, f"excluded={settings.excluded_tags}"])


def _one_line(text: str) -> str:
    return " ".join(str(text).split())


def _host_module(name: str) -> Any:
    return importlib.import_module(f"modules.{name}")
