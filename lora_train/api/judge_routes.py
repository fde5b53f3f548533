"""Routes of the judge, and of what follows from it: the best LoRA published, marked for private use where wanted."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from lora_train.api.route import Route, nothing
from lora_train.api.shapes import JobAnswer, JobBody, JobQuery, LoraBody, NameAnswer, Nothing
from lora_train.app import App
from lora_train.app.judging import JudgeForecast, JudgeSnapshot
from lora_train.core.judgement import PICTURES, WEIGHTS


class JudgeBody(JobBody):
    weights: Annotated[tuple[float, ...], Meta(min_length=1, max_length=16)] = WEIGHTS
    pictures: Annotated[int, Meta(ge=1, le=64)] = PICTURES


class ChoiceBody(LoraBody):
    weight: Annotated[float, Meta(ge=-10, le=10)]


class PrivateBody(JobBody):
    private: bool


def _begin(app: App, body: JudgeBody) -> JobAnswer:
    return JobAnswer(app.judging.begin(body.job, weights=body.weights, pictures=body.pictures))


JUDGE_ROUTES = [
    Route(
        "POST", "judge", "Measure every LoRA of a training at some weights, and recommend one.", JudgeBody, JobAnswer,
        _begin,
    ),
    Route(
        "GET", "judge", "What the judge found, what was chosen instead, and the last job that judged.",
        JobQuery, JudgeSnapshot,
        lambda app, query: app.judging.snapshot(query.job),
    ),
    Route(
        "GET", "judge/forecast", "What judging would cost: pictures and expected seconds.", JobQuery, JudgeForecast,
        lambda app, query: app.judging.forecast(query.job),
    ),
    Route(
        "POST", "judge/choose", "Take another LoRA and weight than the recommended one.", ChoiceBody, Nothing,
        lambda app, body: nothing(app.judging.choose(body.job, body.lora, body.weight)),
    ),
    Route(
        "POST", "judge/follow", "Take what the judge recommends.", JobBody, Nothing,
        lambda app, body: nothing(app.judging.follow_recommendation(body.job)),
    ),
    Route(
        "POST", "loras/publish-recommended", "Publish the LoRA that was chosen or is recommended, or else the last.",
        JobBody, NameAnswer,
        lambda app, body: NameAnswer(app.loras.publish_recommended(body.job)),
    ),
    Route(
        "POST", "loras/private", "Mark the LoRAs of a training for private use, or take the mark off.",
        PrivateBody, Nothing,
        lambda app, body: nothing(app.loras.set_private(body.job, body.private)),
    ),
]  # fmt: skip
