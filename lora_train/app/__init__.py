"""The use cases: what a person can do with Train Tools, by page, API or command line."""

from lora_train.app.application import App
from lora_train.app.planning import PlannedTrain

__all__ = ["App", "PlannedTrain"]
