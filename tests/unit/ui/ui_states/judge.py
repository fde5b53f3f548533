"""The judge of a train: before, at work, done, overruled."""

from __future__ import annotations

import msgspec

from lora_train.app.judging import JudgeForecast, JudgeSnapshot
from lora_train.app.snapshot import Selection
from lora_train.core.jobs import JobStatus
from lora_train.core.judgement import Choice, Judged, Judgement
from lora_train.ui import view
from ui_states.makers import make_train


def make_judgement() -> Judgement:
    """Two rows of the made train's LoRAs; the first one is recommended."""
    files = [lora.file for lora in make_train("finished").loras]
    best = Judged(
        lora=files[0],
        weight=0.8,
        likeness=0.71,
        held_out_likeness=0.6,
        obedience=0.9,
        retention=1.0,
        copying=0.1,
        score=0.65,
        samples=("samples/judge/a-1.png", "samples/judge/a-2.png"),
        nearest=("5_cat/1.png", "5_cat/<2>.png"),
        copies=(0.1, 0.4),
    )
    worse = Judged(lora=files[-1], weight=1.0, likeness=-0.2, copying=1.2, score=-0.2)
    reason = "Step 20 at weight 0.8 is the best."
    return Judgement(rows=(best, worse), lora=files[0], weight=0.8, reason=reason, encoder="the base model")


def judge_states() -> dict[str, str]:
    done = JudgeSnapshot(make_judgement(), forecast=JudgeForecast(96, 240.0))
    worse = done.judgement.rows[1] if done.judgement else None
    assert worse is not None
    running = JobStatus(state="running", phase="judging", phase_done=3, phase_total=96)
    failed = JobStatus(state="failed", message="The card ran out of memory.", hint="Close other programs.")
    snapshots = {
        "before": JudgeSnapshot(forecast=JudgeForecast(96)),
        "impossible": JudgeSnapshot(forecast=JudgeForecast(problem="The base model is gone.\nChoose another.")),
        "waiting": JudgeSnapshot(job="j", status=JobStatus(), is_running=True),
        "at work": JudgeSnapshot(job="j", status=running, is_running=True),
        "failed": JudgeSnapshot(job="j", status=failed, forecast=JudgeForecast(2)),
        "done": done,
        "overruled": msgspec.structs.replace(done, choice=Choice(lora=worse.lora, weight=1.0)),
        "none is worth it": JudgeSnapshot(
            Judgement(rows=(worse,), reason="Nothing is recommended: all of them were spoiled.")
        ),
    }
    train = make_train("finished")
    private = msgspec.structs.replace(train, is_private=True)
    bare = msgspec.structs.replace(train, loras=[])
    best = msgspec.structs.replace(
        train, loras=[msgspec.structs.replace(train.loras[0], is_recommended=True, problem="It was left as it is.")]
    )
    selection = Selection("Cat", "v1")
    return {
        **{f"judge {name}": view.judge_html(judge, train, selection, "T") for name, judge in snapshots.items()},
        "judge of a private train": view.judge_html(done, private, selection, "T"),
        "judge of a train without LoRA": view.judge_html(JudgeSnapshot(), bare, selection, "T"),
        "judge of a running train": view.judge_html(JudgeSnapshot(), make_train("running", 0), selection, "T"),
        "judge with a recommendation": view.judge_html(done, best, selection, "T"),
    }
