"""How a training fits into memory, as HTML: foretold in its sum, and what was tried in its progress."""

from __future__ import annotations

from collections.abc import Sequence

from lora_train.app.fit_snapshot import Fit
from lora_train.app.snapshot import TrainSnapshot
from lora_train.core.memory import Measure, MemoryFacts, Trial, measures
from lora_train.core.numbers import gigabytes_text
from lora_train.ui.html import apart, attributes_text, paragraph, value, words

_RESULTS = {
    "": "fits",
    "out_of_memory": "out of memory",
    "over_budget": "more than there is room for",
    "spilled": "spilled into main memory",
}


def fit_html(fit: Fit | None) -> str:
    """`Memory: about 6.1 GB of 8.0 GB`, with what is expected to make it fit; nothing where memory is unknown."""
    if fit is None:
        return ""
    what = words("Main memory:" if fit.on_cpu else "Memory of the card:")
    sizes = f"{words('about')} {_gigabytes(fit.needed_bytes)} {words('of')} {_gigabytes(fit.device_bytes)}"
    name = "" if fit.on_cpu else f" {value(f'({fit.device})')}"
    others = ""
    if fit.others_bytes:
        others = f" {value('·')} {words('held by other programs:')} {_gigabytes(fit.others_bytes)}"
    line = paragraph(f"{what} {sizes}{name}{others}", "train-tools-fit")
    if not fit.fits:
        return line + _does_not_fit(fit)
    more = measures(fit.plan, beyond=fit.asked)
    if not more:
        return line
    instead = f"{words('As it is set, it would need about')} {_gigabytes(fit.asked_bytes)}."
    return line + paragraph(f"{instead} {words('It is made to fit by:')} {_listed(more)}", "train-tools-quiet")


def _does_not_fit(fit: Fit) -> str:
    if not fit.is_tried:
        advice = (
            words("It may run out of memory: close other programs, or switch gradient checkpointing on.")
            if fit.on_cpu
            else words("It may run out of memory: Fit to my GPU is off.")
        )
        return paragraph(advice, "train-tools-warning")
    doubt = words("Probably too much, even with all that saves memory.")
    tried = words("This is an estimate; the training tries it first, and ends at once if it really does not fit.")
    advice = words("A lower resolution or rank needs less.")
    return paragraph(f"{doubt} {tried} {advice}", "train-tools-warning")


def memory_html(train: TrainSnapshot) -> str:
    """What the trial chose, its peak, and in a closed part all that was tried; nothing before and without a trial."""
    facts = train.memory
    if facts is None or not facts.trials:
        return ""
    chosen = measures(facts.plan)
    how = _listed(chosen) if chosen else words("It fits as it is set.")
    line = f"{words('Fit to my GPU:')} {how}{_peak(facts)}"
    return paragraph(line, "train-tools-quiet") + _trials(facts)


def _peak(facts: MemoryFacts) -> str:
    if facts.fitting is None or not facts.fitting.peak_bytes:
        return ""
    room = f" {words('of')} {_gigabytes(facts.budget_bytes)}" if facts.budget_bytes else ""
    return f" {value('·')} {words('at most')} {_gigabytes(facts.fitting.peak_bytes)}{room}"


def _trials(facts: MemoryFacts) -> str:
    if len(facts.trials) == 1 and not facts.trials[0].why_not:
        return ""
    rows = "".join(_trial(trial) for trial in facts.trials)
    summary = f"<summary>{words('What was tried')}</summary>"
    key = attributes_text({"data-key": "memory"})
    return (
        f'<details class="train-tools-details"{key}>{summary}'
        f'<table class="train-tools-table"><tbody>{rows}</tbody></table></details>'
    )


def _trial(trial: Trial) -> str:
    found = measures(trial.plan)
    how = _listed(found) if found else words("as it is set")
    peak = _gigabytes(trial.peak_bytes) if trial.peak_bytes else ""
    pace = value(f"{trial.s_per_step:.3g} s/step") if trial.s_per_step else ""
    where = f" {words('at step')} {value(trial.step)}" if trial.step else ""
    return f"<tr><td>{how}</td><td>{peak}</td><td>{pace}</td><td>{words(_RESULTS[trial.why_not])}{where}</td></tr>"


def _listed(found: Sequence[Measure]) -> str:
    return apart(words(one.text) + (f" {value(one.value)}" if one.value else "") for one in found)


def _gigabytes(count: int) -> str:
    return value(gigabytes_text(count))
