"""Sweeps as HTML: what one would do, and the table of each that was begun."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lora_train.app.sweep_snapshot import PlanRow, SweepForecast, SweepRow, SweepSnapshot
from lora_train.core.jobs import JobStatus
from lora_train.ui.html import (
    apart,
    attributes_text,
    badge,
    counted,
    duration_text,
    local_time,
    paragraph,
    post_button,
    sentences,
    size_text,
    value,
    words,
)

_STATES = {
    "waiting": "Not started",
    "running": "Running",
    "finished": "Finished",
    "stopped": "Stopped",
    "paused": "Paused",
    "failed": "Failed",
}
_ENDINGS = {
    "": "It goes on.",
    "finished": "Finished",
    "stopped": "Stopped",
    "out of time": "Its time is over.",
}


def sweep_sum_html(forecast: SweepForecast) -> str:
    """`8 runs · 3200 steps · about 2 h 10 min · 1200 MB`, the plan where there is a time to finish by, and the labels;
    or every reason why it can't begin.
    """
    labels = _labels(forecast.labels)
    if forecast.problems:
        headline = paragraph(words("The sweep cannot begin yet:"))
        return f"{headline}{sentences(forecast.problems, 'train-tools-warning')}{labels}"
    facts = [
        counted(len(forecast.labels), "run", "runs"),
        counted(forecast.total_steps, "step", "steps"),
        _time(forecast),
    ]
    facts.append(f"{words('up to')} {value(size_text(forecast.disk_bytes))}")
    plan = f"{paragraph(_finish(forecast))}{plan_html(forecast.plan)}" if forecast.finish_by else ""
    told = sentences(forecast.warnings, "train-tools-warning")
    return f"{paragraph(apart(facts), 'train-tools-sum')}{plan}{told}{labels}"


def plan_html(plan: Sequence[PlanRow], present: int | None = None) -> str:
    """The rungs of a plan as a table; `present` is marked."""
    rows = (_plan_row(number, row, is_present=number == present) for number, row in enumerate(plan))
    return _table(("Rung", "Runs", "Up to step", "At most"), rows)


def sweeps_html(snapshots: Sequence[SweepSnapshot]) -> str:
    """Every sweep of a version; empty where there was none."""
    return "".join(_sweep(snapshot) for snapshot in snapshots)


def _sweep(snapshot: SweepSnapshot) -> str:
    is_over = bool(snapshot.ended)
    facts = [local_time(snapshot.created), counted(len(snapshot.rows), "run", "runs"), words(_ENDINGS[snapshot.ended])]
    buttons = ""
    if not is_over:
        buttons = post_button(
            "Stop all", "sweeps/stop", {"sweep": snapshot.id}, done="The sweep stops; what was trained is saved."
        )
    if any(row.lora for row in snapshot.rows):
        buttons += post_button(
            "Draw the comparison grid", "sweeps/grid", {"sweep": snapshot.id}, done="Put into the queue."
        )
    plan = ""
    if snapshot.finish_by:
        facts.append(f"{words('finish by')} {local_time(snapshot.finish_by)}")
        plan = plan_html(snapshot.plan, None if is_over else snapshot.rung)
    heads = ("Run", "State", "Step", "Loss", "Validation", "Judge", "LoRA")
    table = _table(heads, (_row(row) for row in snapshot.rows))
    heading = f'<h3 class="train-tools-subheading">{words("Sweep")}</h3>'
    return (
        f'<section class="train-tools-sweep">{heading}<div class="train-tools-facts-row">{paragraph(apart(facts))}'
        f'<span class="train-tools-actions">{buttons}</span></div>{table}{sentences(snapshot.notes)}{plan}</section>'
    )


def _row(row: SweepRow) -> Iterable[str]:
    status = row.status
    show = value(row.label)
    if row.job:
        attributes = attributes_text({"data-param": "train", "data-value": row.job, "data-key": f"sweep {row.job}"})
        show = f'<button type="button" class="train-tools-button"{attributes}>{value(row.label)}</button>'
    best = f" {badge('best', 'good')}" if row.is_best else ""
    return (
        f"{show}{best}",
        _state(row),
        value(f"{status.step} / {status.total_steps}" if status.total_steps else ""),
        _number(status.loss),
        _validation(status),
        _judged(row),
        value(row.lora),
    )


def _state(row: SweepRow) -> str:
    state = row.status.state
    if not row.job:
        return words("Deleted")
    text = "Waiting" if row.is_waiting else _STATES[state]
    shown = "waiting" if row.is_waiting else state
    dropped = f" {words('weaker, not trained on')}" if row.is_dropped and state != "finished" else ""
    return (
        f'<span class="train-tools-state train-tools-{shown}"><i aria-hidden="true"></i>{words(text)}</span>{dropped}'
    )


def _validation(status: JobStatus) -> str:
    """The loss on the held-out pictures, and how much of the base model's that is."""
    if status.validation_loss is None:
        return ""
    share = f" ({status.validation_loss / status.base_validation_loss:.1%})" if status.base_validation_loss else ""
    return value(f"{status.validation_loss:.4g}{share}")


def _judged(row: SweepRow) -> str:
    if row.judge_score is None or row.judge_weight is None:
        return ""
    return f"{_number(row.judge_score)} {words('at weight')} {value(f'{row.judge_weight:g}')}"


def _number(number: float | None) -> str:
    return value(f"{number:.4g}") if number is not None else ""


def _time(forecast: SweepForecast) -> str:
    if forecast.finish_by:
        return f"{words('finish by')} {local_time(forecast.finish_by)}"
    if forecast.seconds is None:
        return words("the time will be known after the first training on this machine")
    return f"{words('about')} {value(duration_text(forecast.seconds))}"


def _finish(forecast: SweepForecast) -> str:
    if forecast.seconds is None:
        return words("Each run makes some steps; then the plan is made and shown below.")
    if len(forecast.plan) == 1:
        return words("There is time for all runs to come to their end.")
    return words("After each rung the weaker half is dropped, and the others go on from where they are:")


def _plan_row(number: int, row: PlanRow, *, is_present: bool) -> Iterable[str]:
    steps = str(row.steps_to) if row.steps_from == row.steps_to else f"{row.steps_from} – {row.steps_to}"
    mark = f" {badge('now', 'good')}" if is_present else ""
    end = f" {words('(the end)')}" if row.is_end else ""
    time = duration_text(row.seconds) if row.seconds is not None else "?"
    return f"{value(number + 1)}{mark}", value(row.runs), f"{value(steps)}{end}", value(time)


def _labels(labels: Sequence[str]) -> str:
    if not labels:
        return ""
    listed = "".join(f"<li>{value(label)}</li>" for label in labels)
    summary = f"<summary>{words('All runs')}</summary>"
    return f'<details class="train-tools-details" data-key="sweep labels">{summary}<ol>{listed}</ol></details>'


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f'<th scope="col">{words(text)}</th>' for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        '<div class="train-tools-scroll" tabindex="0" role="region" aria-label="Sweep">'
        '<table class="train-tools-buckets">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
