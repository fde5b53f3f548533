"""The report of a training as one HTML page: no script, no network, all that it shows stands in it.

Every text is escaped. There are no paths and no folder names in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from lora_train.core.memory import measures_text
from lora_train.report import HTML_START
from lora_train.report.chart import chart_svg, turned_at
from lora_train.report.facts import DatasetFacts, ReportFacts, SettingFact, without_folders
from lora_train.report.history import history_html
from lora_train.report.judged import judged_html
from lora_train.report.pictures import embedded
from lora_train.report.style import STYLE

MOST_PICTURES = 16
"""More would make the file too large to be sent to anybody."""


class ReportPicture(NamedTuple):
    """A picture of the report, with the text below it."""

    path: Path
    caption: str


def report_html(facts: ReportFacts, pictures: Sequence[ReportPicture]) -> str:
    """The whole page. `pictures` are embedded as far as they can be read, the first MOST_PICTURES of them."""
    parts = [
        _head(facts),
        _best(facts),
        _section("Curves", _curves(facts)),
        _section("Previews", _previews(pictures)),
        _section("Judgement", judged_html(facts)),
        _section("LoRAs", _loras(facts)),
        _section("Dataset", _dataset(facts)),
        _section("Settings", _settings(facts.changed, facts.usual)),
        _section("History", history_html(facts)),
    ]
    return (
        f'{HTML_START}<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(facts.name)} – training report</title><style>{STYLE}</style></head>\n"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def definitions(rows: Iterable[tuple[str, str]]) -> str:
    """Names and what they are, as far as there is something."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(text)}</dd>' for name, text in rows if text)}</dl>"


def _section(title: str, inner: str) -> str:
    return f"<section><h2>{title}</h2>{inner}</section>\n" if inner else ""


def _head(facts: ReportFacts) -> str:
    status = facts.status
    state = f"{status.state} after {status.step} of {status.total_steps} steps" if status.total_steps else status.state
    rows = [
        ("Project", " · ".join(filter(None, (facts.concept, facts.version)))),
        ("Base model", facts.base_model),
        ("Begun", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(facts.created)) if facts.created else ""),
        ("State", state),
        ("Problem", without_folders(status.message) if status.state == "failed" else ""),
        ("Pace", f"{status.s_per_step:.3g} s per step" if status.s_per_step else ""),
        ("Most memory", f"{status.peak_memory_mb:,} MB" if status.peak_memory_mb else ""),
        ("Saved memory by", measures_text(facts.memory.plan) if facts.memory is not None else ""),
    ]
    return f"<header><h1>{escape(facts.name)}</h1>{definitions(rows)}</header>\n"


def _best(facts: ReportFacts) -> str:
    """Which file, at which weight, why, and what to type."""
    if not facts.best:
        return '<p class="best">No LoRA has been saved.</p>'
    judged = facts.judgement is not None and facts.judgement.lora == facts.best and not facts.is_chosen
    name = facts.best.removesuffix(".safetensors")
    what = "Chosen by hand" if facts.is_chosen else "Recommended" if judged else "The last one saved"
    call = f"<lora:{name}:{facts.best_weight:g}> {facts.trigger}".strip()
    reason = f"<p>{escape(facts.judgement.reason)}</p>" if judged and facts.judgement is not None else ""
    private = '<p class="quiet">This report is private: captions, tags and trigger word are left out.</p>'
    return (
        f'<div class="best"><p><strong>{what}:</strong> {escape(facts.best)} at weight {facts.best_weight:g}</p>'
        f"{reason}"
        f"<p>In a prompt: <code>{escape(call)}</code></p>"
        f'<p class="quiet">Put the file into the folder models/Lora of the WebUI, and type this into the prompt.</p>'
        f"{private if facts.is_private else ''}</div>\n"
    )


def _curves(facts: ReportFacts) -> str:
    svg = chart_svg(facts.curve)
    if not svg:
        return '<p class="quiet">No step has been done.</p>'
    validations = [row for row in facts.curve if row.validation_loss is not None]
    keys = [("raw", "Loss"), ("smooth", "Smoothed loss")]
    keys += (
        [("validation", "Loss on held-out pictures"), ("base", "Base model on held-out pictures")]
        if validations
        else []
    )
    legend = "".join(f'<span class="key {kind}">{text}</span>' for kind, text in keys)
    told = ""
    if validations:
        best = min(validations, key=lambda row: row.validation_loss or 0.0)
        told = f"<p>Lowest loss on held-out pictures: {best.validation_loss:.4g}, after step {best.step}."
        told += f" Base model: {best.base_loss:.4g}." if best.base_loss is not None else ""
        told += " Since then it is over-trained.</p>" if turned_at(facts.curve) is not None else "</p>"
    return f"<figure>{svg}<figcaption>{legend}</figcaption></figure>{told}"


def _previews(pictures: Sequence[ReportPicture]) -> str:
    figures: list[str] = []
    for picture in pictures[:MOST_PICTURES]:
        shown = embedded(picture.path)
        if shown is None:
            continue
        figures.append(
            f'<figure><img src="{shown.uri}" width="{shown.width_px}" height="{shown.height_px}"'
            f' alt="{escape(picture.caption)}"><figcaption>{escape(picture.caption)}</figcaption></figure>'
        )
    more = len(pictures) - MOST_PICTURES
    note = f'<p class="quiet">{more} more are not in this report.</p>' if more > 0 else ""
    return "".join(figures) + note if figures else ""


def _loras(facts: ReportFacts) -> str:
    rows = "".join(
        f'<tr{" class=chosen" if lora.file == facts.best else ""}><td class="name">{escape(lora.file)}</td>'
        f'<td class="number">{lora.step}</td><td class="number">{lora.epoch}</td>'
        f'<td class="number">{lora.size_bytes / 1e6:.1f} MB</td></tr>'
        for lora in facts.loras
    )
    head = '<th>File</th><th class="number">Step</th><th class="number">Epoch</th><th class="number">Size</th>'
    table = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    return table if facts.loras else ""


def _dataset(facts: ReportFacts) -> str:
    dataset = facts.dataset
    if dataset is None:
        return '<p class="quiet">Unknown: an earlier release trained it, which did not note its pictures.</p>'
    return definitions(_dataset_rows(dataset)) + _tags(dataset)


def _dataset_rows(dataset: DatasetFacts) -> list[tuple[str, str]]:
    count = dataset.trained + dataset.held_out
    sizes = ", ".join(f"{size} px ({number})" for size, number in dataset.sizes)
    more = f" and {dataset.more_sizes} other sizes" if dataset.more_sizes else ""
    return [
        ("Pictures trained", str(dataset.trained)),
        ("Pictures held out", str(dataset.held_out or "")),
        ("Regularisation", str(dataset.regularisation or "")),
        ("Repeats", dataset.repeats),
        ("With caption", f"{dataset.captions} of {count}"),
        ("With mask", f"{dataset.masks} of {count}" if dataset.masks else ""),
        ("Sizes", sizes + more),
    ]


def _tags(dataset: DatasetFacts) -> str:
    if not dataset.tags:
        return ""
    tags = "".join(f"<li>{escape(tag.tag)} <small>{tag.pictures}</small></li>" for tag in dataset.tags)
    return f'<h3>Most frequent tags</h3><ul class="tags">{tags}</ul>'


def _settings(changed: Sequence[SettingFact], usual: Sequence[SettingFact]) -> str:
    rows = "".join(
        f"<tr><td>{escape(fact.label)}</td><td>{_shown(fact.value)}</td><td>{_shown(fact.usual)}</td></tr>"
        for fact in changed
    )
    head = "<th>Setting</th><th>Value</th><th>Default</th>"
    table = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    rest = "".join(f"<p>{escape(fact.label)}: <span>{_shown(fact.value)}</span></p>" for fact in usual)
    return f'{table if changed else ""}<h3>As by default</h3><div class="usual">{rest}</div>'


def _shown(text: str) -> str:
    return escape(text) or "–"
