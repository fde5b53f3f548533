"""What the judge found about the LoRAs of the shown train, why, and what can be chosen instead, as HTML."""

from __future__ import annotations

from html import escape
from pathlib import PurePosixPath

from lora_train.app.judging import JudgeForecast, JudgeSnapshot
from lora_train.app.snapshot import Selection, TrainSnapshot
from lora_train.core.judgement import BASE_MODEL, Judged, Judgement
from lora_train.ui.html import (
    apart,
    attributes_text,
    badge,
    counted,
    duration_text,
    error_panel,
    job_file_url,
    paragraph,
    picture_url,
    post_button,
    progress_bar,
    sentence,
    sentences,
    value,
    words,
)

_MOST_SAMPLES = 12
"""Shown beside their nearest training pictures."""
_HEADINGS = ("Likeness", "Held-out", "Obedience", "Retention", "Copying", "Score")
_PRIVATE = (
    "Marked LoRAs ask in their file and on their card not to be shared, and tell no captions, tags or folder names."
)


def judge_html(judge: JudgeSnapshot, train: TrainSnapshot, selection: Selection, token: str) -> str:
    """Button or progress, the recommendation, the table behind it, what was copied, and publishing."""
    parts = [_job(judge, train)]
    if judge.judgement is not None:
        parts += [
            _verdict(judge, train),
            _table(judge.judgement, judge, train),
            _copying(judge.judgement, train, selection, token),
        ]
    return "".join([*parts, _publishing(train)])


def _job(judge: JudgeSnapshot, train: TrainSnapshot) -> str:
    status = judge.status
    if status is not None and judge.is_running:
        is_waiting = status.state != "running"
        headline = words("Waiting in the queue") if is_waiting else words("Judging the LoRAs")
        done = value(f"{status.phase_done} / {status.phase_total}") if status.phase_total else ""
        stop = post_button("Stop", "queue/cancel" if is_waiting else "jobs/stop", {"job": judge.job}, done="It stops.")
        return (
            f'<div class="train-tools-box">{paragraph(f"{headline} {done}")}'
            f"{progress_bar(status.phase_done, status.phase_total)}"
            f'<div class="train-tools-actions">{stop}</div></div>'
        )
    failed = status is not None and status.state == "failed"
    told = error_panel("The LoRAs could not be judged.", status.message, status.hint) if status and failed else ""
    if train.status.state in ("running", "waiting") or train.is_original or not train.loras:
        return told
    if judge.forecast.problem:
        return told + sentences([judge.forecast.problem], "train-tools-quiet")
    text = "Judge" if judge.judgement is None else "Judge again"
    button = post_button(text, "judge", {"job": train.job}, done="Judging is in the queue.")
    about = words("Draws pictures with every LoRA, measures them, and recommends one.")
    return (
        f'{told}<div class="train-tools-facts-row">{paragraph(f"{about} {_cost(judge.forecast)}")}'
        f'<span class="train-tools-actions">{button}</span></div>'
    )


def _cost(forecast: JudgeForecast) -> str:
    pieces = [counted(forecast.pictures, "picture", "pictures")]
    if forecast.seconds is not None:
        pieces.append(f"{words('about')} {value(duration_text(forecast.seconds))}")
    return apart(pieces)


def _verdict(judge: JudgeSnapshot, train: TrainSnapshot) -> str:
    """The recommendation, and what its person took instead."""
    judgement = judge.judgement
    lines = _recommendation(judgement) if judgement is not None else []
    if judgement and judgement.encoder:
        encoder = words(BASE_MODEL) if judgement.encoder == BASE_MODEL else value(judgement.encoder)
        lines.append(paragraph(f"{words('Judged by:')} {encoder}", "train-tools-quiet"))
    if judge.choice is not None:
        back = post_button("Follow the recommendation", "judge/follow", {"job": train.job})
        chosen = value(_at_weight(judge.choice.lora, judge.choice.weight))
        lines.append(paragraph(f"{words('You chose')} {chosen} {back}"))
    return f'<div class="train-tools-box train-tools-verdict">{"".join(lines)}</div>'


def _recommendation(judgement: Judgement) -> list[str]:
    """The best LoRA and what its numbers mean; where there is none, why."""
    best = [row for row in judgement.rows if (row.lora, row.weight) == (judgement.lora, judgement.weight)]
    if not best:
        return [paragraph(sentence(judgement.reason), "train-tools-strong")] if judgement.reason else []
    (row, *_) = best
    headline = f"{words('The best choice:')} {value(_at_weight(row.lora, row.weight))}"
    reasons = (
        f"{words('As like your pictures as they are among themselves:')} {value(f'{row.likeness:.0%}')}",
        f"{words('Follows prompts as well as the base model:')} {value(f'{row.obedience:.0%}')}",
        f"{words('Still draws ordinary prompts right:')} {value(f'{row.retention:.0%}')}",
    )
    return [paragraph(headline, "train-tools-strong"), *map(paragraph, reasons)]


def _at_weight(lora: str, weight: float) -> str:
    return f"{PurePosixPath(lora).stem} × {weight:g}"


def _table(judgement: Judgement, judge: JudgeSnapshot, train: TrainSnapshot) -> str:
    heads = "".join(f'<th scope="col" class="train-tools-number">{words(text)}</th>' for text in _HEADINGS)
    rows = "".join(_row(row, judgement, judge, train) for row in judgement.rows)
    weight = f'<th scope="col" class="train-tools-number">{words("Weight")}</th>'
    return (
        f'<div class="train-tools-scroll" tabindex="0" role="region" aria-label="Judgement"><table '
        f'class="train-tools-judged"><thead><tr><th scope="col">{words("LoRA")}</th>{weight}{heads}<th></th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
    )


def _row(row: Judged, judgement: Judgement, judge: JudgeSnapshot, train: TrainSnapshot) -> str:
    own = (row.lora, row.weight)
    is_recommended = own == (judgement.lora, judgement.weight)
    is_chosen = judge.choice is not None and own == (judge.choice.lora, judge.choice.weight)
    is_taken = is_chosen or (is_recommended and judge.choice is None)
    marks = badge("recommended", "good") if is_recommended else ""
    marks += badge("chosen", "notice") if is_chosen else ""
    take = post_button("Take this one", "judge/choose", {"job": train.job, "lora": row.lora, "weight": row.weight})
    numbers = (row.likeness, row.held_out_likeness, row.obedience, row.retention, row.copying, row.score)
    tone = ' class="train-tools-taken"' if is_taken else ""
    name = f'<th scope="row">{value(PurePosixPath(row.lora).stem)} {marks}</th>'
    return (
        f'<tr{tone}>{name}<td class="train-tools-number">{value(f"{row.weight:g}")}</td>'
        f"{''.join(map(_number, numbers))}<td>{'' if is_taken else take}</td></tr>"
    )


def _number(number: float | None) -> str:
    """A cell with a small bar from 0 to 1; what was not measured is a dash."""
    if number is None:
        return f'<td class="train-tools-number">{value("–")}</td>'
    percent = 100 * min(max(number, 0.0), 1.0)
    return (
        f'<td class="train-tools-number">{value(f"{number:.2f}")}'
        f'<i class="train-tools-measure-bar" aria-hidden="true"><b style="width:{percent:.0f}%"></b></i></td>'
    )


def _copying(judgement: Judgement, train: TrainSnapshot, selection: Selection, token: str) -> str:
    """Drawn pictures beside the training pictures that are most like them, the greatest copies first."""
    pairs = [
        (row.copies[number] if number < len(row.copies) else row.copying, row, sample, row.nearest[number])
        for row in judgement.rows
        for number, sample in enumerate(row.samples[: len(row.nearest)])
    ]
    pairs.sort(key=lambda pair: -pair[0])
    if not pairs:
        return ""
    figures = "".join(_pair(*pair, train, selection, token) for pair in pairs[:_MOST_SAMPLES])
    about = paragraph(
        words("Each drawn picture beside the training picture that is most like it; a plain copy has a one."),
        "train-tools-quiet",
    )
    return (
        f'<details class="train-tools-details" data-key="copying"><summary>{words("Copying")}</summary>{about}'
        f'<div class="train-tools-pairs">{figures}</div></details>'
    )


def _pair(
    copied: float, row: Judged, sample: str, nearest: str, train: TrainSnapshot, selection: Selection, token: str
) -> str:
    query = {"project": selection.project, "version": selection.version, "file": nearest, "size": "thumb"}
    pictures = "".join(
        f'<img loading="lazy" decoding="async" width="96" height="96"{attributes_text({"src": url, "alt": name})}>'
        for url, name in ((job_file_url(train.job, sample, token), sample), (picture_url(query, token), nearest))
    )
    told = value(_at_weight(row.lora, row.weight))
    return (
        f'<figure class="train-tools-pair"><span class="train-tools-value" title="{escape(nearest)}">{pictures}</span>'
        f"<figcaption>{value(f'{copied:.2f}', 'train-tools-strong')} {told}</figcaption></figure>"
    )


def _publishing(train: TrainSnapshot) -> str:
    """For all LoRAs of the train: the best one published, and the private-use mark."""
    if not train.loras:
        return ""
    best = any(lora.is_recommended for lora in train.loras)
    label = "Publish recommended" if best else "Publish last"
    done = "Copied into the LoRA folder."
    publish = post_button(label, "loras/publish-recommended", {"job": train.job}, done=done)
    body = {"job": train.job, "private": not train.is_private}
    toggle = post_button("Not for private use" if train.is_private else "Mark as private use", "loras/private", body)
    mark = f" {badge('private use', 'notice')}" if train.is_private else ""
    return (
        f'<div class="train-tools-facts-row">{paragraph(f"{words(_PRIVATE)}{mark}", "train-tools-quiet")}'
        f'<span class="train-tools-actions">{publish}{toggle}</span></div>'
    )
