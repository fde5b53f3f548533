"""What the doctor found about the installation, as HTML."""

from __future__ import annotations

from lora_train.app.doctor import DoctorSnapshot
from lora_train.core.diagnosis import Found
from lora_train.ui.html import badge, download_link, local_time, paragraph, post_button, progress_bar, value, words

_BADGES = {"good": ("good", "good"), "warning": ("worth a look", "notice"), "error": ("must be mended", "error")}


def doctor_html(snapshot: DoctorSnapshot, token: str) -> str:
    """The button, what is wrong, and all that was looked at."""
    if snapshot.is_running:
        return paragraph(words("The installation is being checked: packages, card, memory.")) + progress_bar(0, 0)
    diagnosis = snapshot.diagnosis
    if diagnosis is None:
        why = words("Looks whether all packages and the card work, and tells what mends what doesn't.")
        button = post_button("Check the installation", "doctor", {})
        return f'{paragraph(why)}<div class="train-tools-actions">{button}</div>'
    rows = "".join(map(_row, diagnosis.found))
    link = download_link("Report without private data", "doctor/report", {}, token)
    return (
        f'<table class="train-tools-table train-tools-doctor"><tbody>{rows}</tbody></table>'
        f'<div class="train-tools-actions">{post_button("Check again", "doctor", {})}'
        f"{link}{local_time(diagnosis.at)}</div>"
    )


def _row(line: Found) -> str:
    text, tone = _BADGES[line.state]
    told = value(line.value) if line.value else ""
    told += paragraph(value(line.error), "train-tools-quiet") if line.error else ""
    told += paragraph(words(line.remedy)) if line.remedy else ""
    told += paragraph(value(line.command, "train-tools-command")) if line.command else ""
    return f'<tr><th scope="row">{words(line.title)}</th><td>{badge(text, tone)}</td><td>{told}</td></tr>'
