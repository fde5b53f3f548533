"""The judge's table in a report."""

from __future__ import annotations

from html import escape

from lora_train.core.judgement import Judged
from lora_train.report.facts import ReportFacts

_MOST_ROWS = 40


def judged_html(facts: ReportFacts) -> str:
    """The table, best first, with what was recommended or chosen marked; "" where nothing was judged."""
    judgement = facts.judgement
    if judgement is None or not judgement.rows:
        return ""
    has_held_out = any(row.held_out_likeness is not None for row in judgement.rows)
    names = ["LoRA", "Weight", "Score", "Likeness", *(["Held-out likeness"] if has_held_out else [])]
    names += ["Obedience", "Retention", "Copying"]
    head = "".join(f'<th class="{"number" if name != "LoRA" else "name"}">{name}</th>' for name in names)
    rows = "".join(_row(row, facts, has_held_out=has_held_out) for row in judgement.rows[:_MOST_ROWS])
    told = f"<p>{escape(judgement.reason)}</p>" if judgement.reason else ""
    if facts.is_chosen and judgement.lora:
        told += f"<p>Recommended was {escape(judgement.lora)} at weight {judgement.weight:g}.</p>"
    looked = (
        f'<p class="quiet">Pictures were compared by: {escape(judgement.encoder)}.</p>' if judgement.encoder else ""
    )
    return (
        f'{told}<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        '<p class="quiet">Likeness: 0 is what the base model draws, 1 the training pictures among themselves. '
        "Retention: the share of ordinary prompts that are still drawn right. Copying: 0 is a fresh variation, "
        f"1 a plain copy.</p>{looked}"
    )


def _row(row: Judged, facts: ReportFacts, *, has_held_out: bool) -> str:
    numbers = [row.score, row.likeness]
    cells = [f"{row.weight:g}", *(f"{number:.2f}" for number in numbers)]
    if has_held_out:
        cells.append("–" if row.held_out_likeness is None else f"{row.held_out_likeness:.2f}")
    cells += [f"{row.obedience:.2f}", f"{row.retention:.0%}", f"{row.copying:.2f}"]
    is_best = (row.lora, row.weight) == (facts.best, facts.best_weight)
    mark = ' class="chosen"' if is_best else ""
    tail = "".join(f'<td class="number">{cell}</td>' for cell in cells)
    return f'<tr{mark}><td class="name">{escape(row.lora)}</td>{tail}</tr>'
