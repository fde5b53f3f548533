"""Forge, reForge and Forge Classic: their memory management puts the model back by itself."""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Callable
from typing import Any

from lora_train.hosts.webui import WebUI, host_module

_MAIN_THREAD_LIMIT_S = 120.0
_PICTURE_LIMIT_S = 3600.0
"""Of a batch, also on a slow card, with its checkpoint loaded before."""


def is_forge() -> bool:
    """Whether this host is one of them."""
    return importlib.util.find_spec("modules_forge") is not None


class Forge(WebUI):
    """Forge (packages `backend` and `modules_forge`), or one of the older line (`ldm_patched`)."""

    def __init__(self) -> None:
        self._is_new_line = importlib.util.find_spec("backend") is not None
        has_schedulers = importlib.util.find_spec("modules.sd_schedulers") is not None
        self.program = "Forge" if self._is_new_line else "reForge" if has_schedulers else "Forge Classic"
        super().__init__()

    def _refused(self) -> list[tuple[Any, str]]:
        if self._is_new_line:  # the second one is where a picture loads its checkpoint
            processing = host_module("processing")
            return [(processing, "process_images_inner"), (processing, "manage_model_and_prompt_cache")]
        # Here what the main thread raises is lost, so the page's requests are refused before they get there.
        main_thread = importlib.import_module("modules_forge.main_thread")
        return [*super()._refused(), (main_thread, "run_and_wait_result")]

    def _postponed(self) -> list[tuple[Any, str]]:
        return [] if self._is_new_line else super()._postponed()

    def _unload(self) -> None:
        if self._is_new_line:
            memory = importlib.import_module("backend.memory_management")
            _on_main_thread(lambda: _free(memory), _MAIN_THREAD_LIMIT_S)
        else:
            _free(importlib.import_module("ldm_patched.modules.model_management"))

    def _run_where_it_draws(self, work: Callable[[], Any]) -> Any:
        return _on_main_thread(work, _PICTURE_LIMIT_S)

    def _reload(self) -> bool:
        """The next picture puts the model back."""
        return host_module("sd_models").model_data.sd_model is not None


def _free(memory_management: Any) -> None:
    memory_management.unload_all_models()
    memory_management.soft_empty_cache()


def _on_main_thread(work: Callable[[], Any], limit_s: float) -> Any:
    """Run where Forge makes its pictures, and wait. Its own `run_and_wait_result` loses what is raised."""
    main_thread = importlib.import_module("modules_forge.main_thread")
    done = threading.Event()
    raised: list[Exception] = []
    results: list[Any] = []

    def task() -> None:
        try:
            results.append(work())
        except Exception as error:  # handed over to the thread that waits
            raised.append(error)
        finally:
            done.set()

    main_thread.async_run(task)
    if not done.wait(limit_s):
        raise TimeoutError("Forge's main thread did not answer.")
    if raised:
        raise raised[0]
    return results[0]
