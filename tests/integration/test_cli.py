"""The command line as a person uses it: processes, exit codes, what is printed, what lies in the folders after."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from lora_train.core import events as ev
from lora_train.core.assets import DEMO_MODEL
from lora_train.core.jobs import JobFolder

if TYPE_CHECKING:
    from tests.integration.conftest import Files, Studio

NAME = "自作LORA"
QUICK = ["--base-model", "demo", "--rank", "2", "--learning-rate", "0.004", "--set", "cpu_threads=1"]
LONG = [*QUICK, "--epochs", "1", "--repeats", "2000"]
"""Minutes of work: it is always ended early."""

CARD_KEYS = {
    "description": str,
    "sd version": str,
    "activation text": str,
    "preferred weight": (int, float),
    "negative text": str,
    "notes": str,
}
"""What WebUIs read of a card's JSON (Automatic1111's `ui_edit_user_metadata`), and of which type."""


@pytest.fixture
def images(studio: Studio) -> Path:
    return studio.pictures("絵 と 写真", ["a red thing", "a blue thing"])


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON object on the last line of standard output."""
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def first_job(process: subprocess.Popen[bytes]) -> JobFolder:
    """The job of a running command, from the first line that it prints."""
    assert process.stdout is not None
    return JobFolder(Path(process.stdout.readline().decode("utf-8").strip()))


# --- a whole training ---


def test_train_publish_second_run_preview_and_refused_resume(studio: Studio, files: type[Files], images: Path) -> None:
    lora_dir = studio.root / "モデル folder" / "Lora"
    places = ["--images", images, "--publish-to", lora_dir, "--workspace", "作業 場"]
    arguments = ["train", "--name", NAME, *places, *QUICK]
    previews = ["--set", "preview_prompts=a red thing", "--set", "preview_weights=0,1", "--set", "preview_steps=2"]
    done = studio.cli(*arguments, "--epochs", "2", "--save-every-epochs", "1", "--json", *previews)
    assert done.returncode == 0, done.stderr
    job = JobFolder(Path(done.stdout.splitlines()[0]))
    assert len(done.stdout.splitlines()) == 2, "progress goes to standard error"
    assert "step" in done.stderr

    stem = f"{NAME}-v1"
    assert job.path == studio.root / "作業 場" / "projects" / NAME / "versions" / "v1" / "trains" / stem
    told = answer(done)
    assert (told["state"], told["job"], told["step"]) == ("finished", str(job.path), told["total_steps"])
    saved = [job.path / f"{stem}-000001.safetensors", job.path / f"{stem}.safetensors"]
    assert [Path(path) for path in told["loras"]] == saved
    for path in saved:
        assert files.metadata(path)["ss_output_name"] == path.stem

    published = lora_dir / f"{stem}.safetensors"
    assert Path(told["published"]) == published
    assert files.tensor_bytes(published) == files.tensor_bytes(saved[-1])
    assert files.metadata(published)["ss_output_name"] == stem
    _is_a_card(published, thumbnail=job.samples_dir / f"{stem}-p1-w1.png")
    _has_previews(job, stem)

    _is_named_anew(studio, files, arguments, lora_dir, stem)
    _draws_a_grid(studio, published)
    refused = studio.cli("resume", job.path, "--json")
    assert refused.returncode == 1
    assert "is finished" in answer(refused)["message"]
    assert answer(studio.cli("status", job.path, "--json"))["state"] == "finished"


def _is_a_card(lora: Path, thumbnail: Path) -> None:
    text = lora.with_suffix(".json").read_text(encoding="utf-8")
    card = json.loads(text)
    assert text.startswith('{\n    "'), "four blanks, as the host writes it"
    assert {"description", "sd version", "activation text", "preferred weight", "notes"} <= card.keys()
    for key, value in card.items():
        assert isinstance(value, CARD_KEYS[key])
    assert card["sd version"] == "SD1"
    assert card["preferred weight"] > 0
    pictures = [path.name for path in lora.parent.iterdir() if path.suffix in (".png", ".jpg", ".webp", ".gif")]
    assert pictures == [f"{lora.stem}.png"]
    with Image.open(lora.with_suffix(".png")) as picture, Image.open(thumbnail) as preview:
        assert picture.size == (512, 768)
        assert picture.info["parameters"] == preview.info["parameters"] != ""


def _has_previews(job: JobFolder, stem: str) -> None:
    names = {path.name for path in job.samples_dir.iterdir()}
    expected = {f"{own}-{kind}.png" for own in (stem, f"{stem}-000001") for kind in ("p1-w0", "p1-w1", "grid")}
    assert names == expected

    def pixels(name: str) -> np.ndarray:
        return np.asarray(Image.open(job.samples_dir / name)).astype(int)

    base, later_base = pixels(f"{stem}-000001-p1-w0.png"), pixels(f"{stem}-p1-w0.png")
    assert (base == later_base).all(), "at weight 0 it is the base model, whatever was learned"
    assert (pixels(f"{stem}-p1-w1.png") != base).any()


def _is_named_anew(studio: Studio, files: type[Files], arguments: list[Any], lora_dir: Path, stem: str) -> None:
    """A second train of the same name: hosts cache by name, so nothing may be called the same."""
    again = studio.cli(*arguments, "--epochs", "1", "--json")
    assert again.returncode == 0, again.stderr
    job = JobFolder(Path(again.stdout.splitlines()[0]))
    assert job.path.name == f"{stem}-r2"
    for path in (job.path / f"{stem}-r2.safetensors", lora_dir / f"{stem}-r2.safetensors"):
        assert files.metadata(path)["ss_output_name"] == f"{stem}-r2"
    assert {path.name for path in lora_dir.glob("*.safetensors")} == {
        f"{stem}.safetensors",
        f"{stem}-r2.safetensors",
    }


def _draws_a_grid(studio: Studio, lora: Path) -> None:
    out = studio.root / "out" / "網.png"
    done = studio.cli(
        "preview", lora, "--base-model", "demo", "--prompt", "a red thing", "--prompt", "青い物",
        "--weights", "0,0.6,1", "--out", out, "--set", "preview_steps=2", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert answer(done)["result"]["grid"] == str(out)
    with Image.open(out) as grid:
        assert grid.format == "PNG"
        assert grid.width >= 3 * 64
        assert grid.height >= 2 * 64


# --- requests from another process ---


def test_status_pause_resume_stop_and_changed_pictures(studio: Studio, files: type[Files], images: Path) -> None:
    training = studio.background("train", "--images", images, "--name", "long", *LONG, "--json")
    job = first_job(training)
    studio.wait_for_step(job, training, 1)
    status = answer(studio.cli("status", job.path, "--json"))
    assert status["state"] == "running"
    assert 1 <= status["step"] < status["total_steps"] == 4000
    assert status["eta_s"] > 0
    words = studio.cli("status", job.path)
    assert words.returncode == 0
    assert "/4000" in words.stdout
    assert "epoch 1/1" in words.stdout

    again = studio.cli("resume", job.path)
    assert again.returncode == 1
    assert "is running already" in again.stderr

    paused = studio.cli("pause", job.path, "--json")
    assert paused.returncode == 0
    assert answer(paused)["state"] == "paused"
    output, errors = training.communicate(timeout=180)
    assert training.returncode == 0
    assert "lora-train resume" in errors.decode("utf-8")
    assert json.loads(output.splitlines()[-1])["state"] == "paused"
    assert not list(job.path.glob("*.safetensors"))

    nothing = studio.cli("stop", job.path)
    assert nothing.returncode == 1
    assert "is not running" in nothing.stderr

    resumed = studio.background("resume", job.path, "--json")
    assert first_job(resumed).path == job.path
    at_pause = answer(paused)["step"]
    studio.wait_for_step(job, resumed, at_pause + 1)
    stopped = answer(studio.cli("stop", job.path, "--json"))
    assert stopped["state"] == "stopped"
    assert stopped["step"] > at_pause
    assert [Path(path).name for path in stopped["loras"]] == [f"long-v1-step{stopped['step']:06}.safetensors"]
    assert files.metadata(Path(stopped["loras"][0]))["ss_output_name"] == f"long-v1-step{stopped['step']:06}"
    resumed.communicate(timeout=180)
    assert resumed.returncode == 0

    next(job.path.parents[1].glob("dataset/processed/**/*.txt")).write_text("another caption", encoding="utf-8")
    refused = studio.cli("resume", job.path, "--json")
    assert refused.returncode == 1
    assert "not the ones this training began with" in answer(refused)["message"]
    assert "Traceback" not in refused.stderr
    assert answer(studio.cli("status", job.path, "--json"))["state"] == "failed"


@pytest.mark.skipif(sys.platform == "win32", reason="a console's Ctrl-C can't be sent to one process there")
def test_ctrl_c_stops_and_saves(studio: Studio, files: type[Files], images: Path) -> None:
    training = studio.background(
        "train", "--images", images, "--name", "long", *LONG, "--publish-to", studio.root / "Lora",
        # A shell without job control starts its background jobs deaf to Ctrl-C; a person's terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    job = first_job(training)
    studio.wait_for_step(job, training, 1)
    training.send_signal(signal.SIGINT)
    output, errors = (stream.decode("utf-8") for stream in training.communicate(timeout=180))
    assert training.returncode == 0
    assert "Traceback" not in errors
    assert "Stopping after this step" in errors
    last = job.events()[-1]
    assert isinstance(last, ev.Stopped)
    lora = job.path / f"long-v1-step{last.step:06}.safetensors"
    published = studio.root / "Lora" / lora.name
    assert output.splitlines() == [str(lora), f"published: {published}"]
    assert files.are_finite(lora)
    assert files.clock(files.states(job)[-1])["step"] == last.step
    assert files.tensor_bytes(published) == files.tensor_bytes(lora)


# --- what is refused ---


def test_wrong_values_are_refused_at_once_and_together(studio: Studio, images: Path) -> None:
    done = studio.cli(
        "train", "--images", images / "nowhere", "--name", "???", "--base-model", studio.root / "no.safetensors",
        "--epochs", "0", "--clip-skip", "13", "--optimizer", "Adagrad", "--learning-rate", "nan",
        "--set", "flip=perhaps", "--set", "epoch=3", "--json",
    )  # fmt: skip
    assert done.returncode == 2
    message = answer(done)["message"]
    assert answer(done)["error"] == "ConfigError"
    for part in (
        "is not a folder",
        "'???' can't be a name",
        "no.safetensors does not exist",
        "'0' is not a whole number from 1 to 10000",
        "'13' is not a whole number from 1 to 12",
        "'Adagrad' is not one of AdamW, Adam, AdamW8bit, ",
        "learning_rate",
        "'perhaps' is not true or false",
        "epoch: there is no setting of this name (did you mean epochs?)",
    ):
        assert part in message
    assert len(message.splitlines()) == 9
    assert not (studio.root / "outputs").exists(), "nothing was started"


@pytest.mark.parametrize(
    "line", ["", "learn", "train", "train --images", "status", "train --images . --name x --set flip", "stop --now"]
)
def test_bad_arguments_exit_with_2(studio: Studio, line: str) -> None:
    done = studio.cli(*line.split(), "--json")
    assert done.returncode == 2
    assert answer(done)["error"] == "ConfigError"
    assert "Traceback" not in done.stderr
    assert not (studio.root / "outputs").exists()


def test_a_folder_without_a_usable_picture(studio: Studio) -> None:
    folder = studio.root / "broken"
    folder.mkdir()
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (folder / "notes.md").write_text("no picture", encoding="utf-8")
    done = studio.cli("train", "--images", folder, "--name", "x", *QUICK, "--json")
    assert done.returncode == 1
    told = answer(done)
    assert told["error"] == "DatasetError"
    assert "broken.png" in told["message"]
    assert "Traceback" not in done.stderr
    assert not list(studio.root.rglob("job.json"))


def test_base_models_that_cannot_be_trained_on(studio: Studio, images: Path) -> None:
    half = studio.root / "half.safetensors"
    half.write_bytes(DEMO_MODEL.read_bytes()[:100_000])
    nonsense = studio.root / "nonsense.ckpt"
    nonsense.write_bytes(b"<html>not found</html>")
    sdxl = studio.root / "sdxl.safetensors"
    save_file(
        {
            "model.diffusion_model.input_blocks.0.0.weight": np.zeros((320, 4, 3, 3), np.float16),
            "conditioner.embedders.1.model.ln_final.weight": np.zeros(1280, np.float16),
        },
        str(sdxl),
    )
    for model, words in ((half, "half.safetensors"), (nonsense, "nonsense.ckpt"), (sdxl, "XL")):
        done = studio.cli("train", "--images", images, "--name", "x", "--base-model", model, "--json")
        assert done.returncode == 1
        assert answer(done)["error"] == "ModelError"
        assert words in answer(done)["message"]
        assert "Traceback" not in done.stderr
    assert not (studio.root / "outputs").exists()


def test_a_folder_that_is_no_job(studio: Studio) -> None:
    for command in ("status", "stop", "pause", "resume"):
        done = studio.cli(command, studio.root, "--json")
        assert done.returncode == 1
        assert "is not a job" in answer(done)["message"]
        assert "Traceback" not in done.stderr


# --- quick commands ---


def test_inspect_is_quick_and_imports_no_torch(studio: Studio) -> None:
    done = studio.python(
        "import contextlib, io, json, sys, time\n"
        "from lora_train.__main__ import main\n"
        "seconds, out = [], io.StringIO()\n"
        "with contextlib.redirect_stdout(out):\n"
        "    for _ in range(5):\n"
        "        begun = time.process_time()\n"
        "        assert main(['inspect', sys.argv[1], '--json']) == 0\n"
        "        seconds.append(time.process_time() - begun)\n"
        "heavy = [name for name in ('torch', 'diffusers', 'transformers', 'numpy') if name in sys.modules]\n"
        "print(json.dumps({'s': min(seconds), 'heavy': heavy, 'told': json.loads(out.getvalue().splitlines()[-1])}))\n",
        DEMO_MODEL,
    )
    assert done.returncode == 0, done.stderr
    told = answer(done)
    assert told["heavy"] == []
    assert told["s"] < 0.1
    assert told["told"]["checkpoint"]["family"] == "sd1"


def test_help_imports_nothing_heavy(studio: Studio) -> None:
    done = studio.python(
        "import json, sys\n"
        "from lora_train.__main__ import main\n"
        "try:\n"
        "    main(['train', '--help'])\n"
        "except SystemExit as end:\n"
        "    assert not end.code\n"
        "print(json.dumps({name: name in sys.modules for name in ('torch', 'numpy', 'PIL')}))\n"
    )
    assert answer(done) == {"torch": False, "numpy": False, "PIL": False}
    assert "--clip-skip" in done.stdout
    assert "from 1 to 12" in done.stdout


# --- tools ---


def _write_lora(path: Path, rank: int) -> Path:
    numbers = np.random.default_rng(rank)
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {
        f"{name}.lora_down.weight": numbers.normal(size=(rank, 768)).astype(np.float32),
        f"{name}.lora_up.weight": numbers.normal(size=(32, rank)).astype(np.float32) * 0.1,
        f"{name}.alpha": np.array(rank / 2, dtype=np.float32),
    }
    save_file(tensors, path, metadata={"ss_base_model_version": "sd_v1", "ss_output_name": path.stem})
    return path


def test_tools_merge_and_resize(studio: Studio, files: type[Files]) -> None:
    """Two LoRAs into one, that one smaller, and what is wrong in words: each a command and a new file."""
    first, second = _write_lora(studio.root / "自作.safetensors", 3), _write_lora(studio.root / "b.safetensors", 5)
    both = studio.root / "two of them.safetensors"
    done = studio.cli(
        "tool", "merge", first, second, "--weights", "1,-0.5", "--out", both, "--precision", "fp32", "--json"
    )
    assert done.returncode == 0, done.stderr
    told = answer(done)
    assert (told["state"], told["lora"], told["modules"], told["ranks"]) == ("finished", str(both), 1, [8])
    assert told["largest_error"] < 1e-6
    assert files.metadata(both)["ss_training_comment"] == "merged from 自作 x 1, b x -0.5"

    small = studio.root / "small.safetensors"
    done = studio.cli("tool", "resize", both, "--rank", 2, "--out", small)
    assert done.returncode == 0, done.stderr
    assert f"LoRA     {small}\nModules  1, rank 2, " in done.stdout
    assert "Error    0." in done.stdout
    inspected = answer(studio.cli("inspect", small, "--json"))["lora"]
    assert (inspected["family"], inspected["ranks"], inspected["incomplete"]) == ("sd1", [2], [])

    refused = studio.cli("tool", "resize", both, "--out", small, "--keep", "1.5", "--json")
    assert refused.returncode == 2
    assert "exists already" in answer(refused)["message"]
    assert "keep: 1.5" in answer(refused)["message"]
