"""Every live part of the page in every state, as HTML by name; one subject a file."""

from __future__ import annotations

from ui_states.captioning import captioning_states
from ui_states.captions import caption_states
from ui_states.dataset import dataset_states, model_states, sum_states
from ui_states.doctor import doctor_states
from ui_states.grids import grid_states
from ui_states.health import health_states
from ui_states.history import history_states
from ui_states.judge import judge_states
from ui_states.memory import memory_states
from ui_states.optimizers import optimizer_states
from ui_states.presets import preset_states
from ui_states.proofs import proof_states
from ui_states.regularisation import regularisation_states
from ui_states.sweeps import sweep_states
from ui_states.tasks import task_states
from ui_states.trains import queue_and_message_states, train_states

_SUBJECTS = (
    dataset_states,
    sum_states,
    memory_states,
    model_states,
    optimizer_states,
    captioning_states,
    caption_states,
    health_states,
    grid_states,
    history_states,
    preset_states,
    regularisation_states,
    train_states,
    sweep_states,
    judge_states,
    proof_states,
    doctor_states,
    task_states,
    queue_and_message_states,
)


def rendered_states() -> dict[str, str]:
    """No name is there twice, so that no state hides another."""
    found: dict[str, str] = {}
    for states in (make() for make in _SUBJECTS):
        assert found.keys().isdisjoint(states)
        found |= states
    return found
