"""The dataset, the sum of the training that it would make, and the base model."""

from __future__ import annotations

import msgspec

from lora_train.app.snapshot import BaseModelSnapshot, DatasetSnapshot, Forecast, PictureEntry, Selection
from lora_train.core.jobs import JobStatus
from lora_train.ui import view
from ui_states.makers import make_forecast, make_pictures, make_snapshot


def dataset_states() -> dict[str, str]:
    waiting = PictureEntry(file="new.jpg", width_px=3024, height_px=4032, caption="", is_waiting=True)
    ordinary = PictureEntry(file="1_cat/1.png", width_px=512, height_px=512, caption="cat", is_regularisation=True)
    other = msgspec.structs.replace(ordinary, file="1_cat/2.png")
    updates = {
        "updating": JobStatus(state="running", phase="cropping", phase_done=3, phase_total=18),
        "update begins": JobStatus(state="waiting"),
        "update failed": JobStatus(state="failed", message="The disk is full.", hint="Make room."),
        "update stopped": JobStatus(state="stopped"),
        "update with notes": JobStatus(state="finished", notes=["x.jpg can't be read; it was left out."]),
    }
    datasets = {
        "no picture": DatasetSnapshot(),
        "one picture": DatasetSnapshot(pictures=make_pictures(1)),
        "pictures": DatasetSnapshot(
            pictures=[*make_pictures(18), ordinary, waiting],
            problems=["9_Cat/00003-0-cat.png has no caption."],
            folders=["/home/me/outputs/train_tools/projects/Cat/versions/v1/dataset/processed/9_Cat"],
        ),
        "pages": DatasetSnapshot(pictures=make_pictures(150)),
        **{
            name: DatasetSnapshot(pictures=[*make_pictures(2), ordinary, other], update=status)
            for name, status in updates.items()
        },
    }
    shown = {name: view.dataset_html(make_snapshot(dataset=dataset), "T") for name, dataset in datasets.items()}
    return {"no version": view.dataset_html(make_snapshot(selection=Selection()), "T"), **shown}


def sum_states() -> dict[str, str]:
    several = make_forecast(
        batch_size=2, accumulation=4, is_exact=False, regularisation_pictures=20, views_per_epoch=324, total_steps=407
    )
    forecasts = {
        "sum": make_forecast(),
        "sum of ones": Forecast(pictures=1, repeats=1, views_per_epoch=1, epochs=1, total_steps=1, seconds=1.0),
        "sum in seconds": make_forecast(seconds=42.0),
        "sum in hours": make_forecast(seconds=9000.0),
        "sum without time": make_forecast(seconds=None),
        "sum with everything": several,
        "sum with one regularisation picture": msgspec.structs.replace(several, regularisation_pictures=1),
        "sum of folders": make_forecast(repeats=None),
        "sum of one view": make_forecast(repeats=None, views_per_epoch=1),
        "sum with chosen repeats": Forecast(
            pictures=10, repeats=32, views_per_epoch=320, epochs=10, total_steps=1600, batch_size=2, aimed_steps=1600
        ),
        "sum over the aim": Forecast(
            pictures=90, repeats=1, views_per_epoch=90, epochs=10, total_steps=900, aimed_steps=400, is_over_aim=True
        ),
        "sum with warnings": make_forecast(
            warnings=["Learning rate: 1 is very high."], overridden=["Seed: 7 instead of 23, by the sd_script args."]
        ),
        "sum with held-out pictures": make_forecast(held_out=2),
        "sum with one held-out picture": make_forecast(held_out=1),
        "no sum": Forecast(),
        "impossible": Forecast(pictures=3, problems=["Choose a base model.", "Learning rate: 7 is not 0 to 1."]),
    }
    return {name: view.sum_html(forecast) for name, forecast in forecasts.items()}


def model_states() -> dict[str, str]:
    models = {
        "model": BaseModelSnapshot("v1-5", "Stable Diffusion 1.x", "epsilon", 512),
        "model of v": BaseModelSnapshot("v2", "Stable Diffusion 2.x", "v_prediction", 768, clip_skip_matters=False),
        "model unknown": BaseModelSnapshot("x", "Stable Diffusion 2.x", "unknown", 768),
        "model refused": BaseModelSnapshot("flux", problem="flux.safetensors is not a Stable Diffusion checkpoint."),
        "no model": BaseModelSnapshot(),
    }
    return {name: view.model_html(model) for name, model in models.items()}
