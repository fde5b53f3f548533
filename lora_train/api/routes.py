"""All routes of the HTTP API. `api.server` puts them on a server."""

from __future__ import annotations

from typing import Any

from lora_train.api.caption_routes import CAPTION_ROUTES
from lora_train.api.dataset_routes import DATASET_ROUTES
from lora_train.api.doctor_routes import DOCTOR_ROUTES
from lora_train.api.grid_routes import GRID_ROUTES
from lora_train.api.history_routes import HISTORY_ROUTES
from lora_train.api.judge_routes import JUDGE_ROUTES
from lora_train.api.preset_routes import PRESET_ROUTES
from lora_train.api.project_routes import PROJECT_ROUTES
from lora_train.api.regularisation_routes import REGULARISATION_ROUTES
from lora_train.api.route import Route
from lora_train.api.sweep_routes import SWEEP_ROUTES
from lora_train.api.task_routes import TASK_ROUTES
from lora_train.api.training_routes import TRAINING_ROUTES

ROUTES: list[Route[Any, Any]] = [
    *PROJECT_ROUTES,
    *DATASET_ROUTES,
    *REGULARISATION_ROUTES,
    *CAPTION_ROUTES,
    *PRESET_ROUTES,
    *TRAINING_ROUTES,
    *GRID_ROUTES,
    *SWEEP_ROUTES,
    *JUDGE_ROUTES,
    *HISTORY_ROUTES,
    *DOCTOR_ROUTES,
    *TASK_ROUTES,
]
