"""Datasets and captions from the command line, as processes: what is printed, what lies in the folders after."""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from lora_train.core.captioners import find_model

if TYPE_CHECKING:
    from tests.assets.hubs import Hub
    from tests.integration.conftest import Studio

NAME = "自作 LORA"
TO = ["--name", NAME, "--workspace", "作業 場"]


def answer(done: Any, code: int = 0) -> dict[str, Any]:
    """The JSON object on the last line of standard output, of a command that ended with `code`."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def images(studio: Studio) -> Path:
    return studio.pictures("絵", ["1girl, red hat", "1girl, blue sky", ""], sizes_px=[(64, 64), (96, 64)])


@pytest.fixture
def made(studio: Studio, images: Path) -> Path:
    """The trained set of three pictures; its folder."""
    answer(studio.cli("dataset", "add", *TO, images, "--json"))
    sizes = ["--set", "width_px=64", "--set", "height_px=64"]
    told = answer(studio.cli("dataset", "update", *TO, *sizes, "--trigger-word", "mycat", "--json"))
    return Path(told["folders"][0])


def captions(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))}


# --- pictures ---


def test_files_folders_and_archives_are_taken_in(studio: Studio, images: Path) -> None:
    (studio.root / "text.png").write_text("no picture", encoding="utf-8")
    with zipfile.ZipFile(studio.root / "inner.zip", "w") as inner:
        inner.write(images / "0-0.png", "a.png")
    with zipfile.ZipFile(studio.root / "outer.zip", "w") as outer:
        outer.write(images / "0-1.png", "旅/旅行.png")
        outer.write(studio.root / "inner.zip", "inner.zip")
    done = studio.cli("dataset", "add", *TO, "絵", "outer.zip", "text.png")
    assert done.returncode == 0
    kept = ["0-0.png", "0-0.txt", "0-1.png", "0-1.txt", "0-2.png", "0-2.txt", "旅行.png"]
    assert done.stdout.splitlines() == kept
    origin = studio.root / "作業 場" / "projects" / NAME / "versions" / "v1" / "dataset" / "origin"
    assert sorted(path.name for path in origin.iterdir()) == kept
    assert (origin / "0-0.png").read_bytes() == (images / "0-0.png").read_bytes()
    left_out = done.stderr.splitlines()
    assert left_out[0].startswith("inner.zip in outer.zip can't be used")
    assert left_out[1].startswith("text.png can't be used: it is not a picture")
    assert left_out[2:] == ["7 files are kept."]

    again = answer(studio.cli("dataset", "add", *TO, "絵", "--json"))
    assert (again["kept"], again["left_out"]) == ([], [])
    (images / "0-0.txt").write_text("other", encoding="utf-8")
    assert answer(studio.cli("dataset", "add", *TO, "絵", "--json"))["kept"] == ["0-0.txt"]


def test_what_cannot_be_taken_in(studio: Studio) -> None:
    missing = answer(studio.cli("dataset", "add", *TO, "no.png", "nor this", "--json"), 2)
    assert missing["message"] == "no.png does not exist\nnor this does not exist"
    assert not (studio.root / "作業 場").exists()
    (studio.root / "text.png").write_text("no picture", encoding="utf-8")
    told = answer(studio.cli("dataset", "add", *TO, "text.png", "--json"), 1)
    assert told["kept"] == []
    assert "text.png can't be used" in told["left_out"][0]
    bad_name = studio.cli("dataset", "add", "--name", "???", "text.png", "--json")
    assert "can't be a name" in answer(bad_name, 1)["message"]


def test_update_crops_and_saves_what_was_set(studio: Studio, images: Path) -> None:
    answer(studio.cli("dataset", "add", *TO, images, "--json"))
    arguments = ["dataset", "update", *TO, "--trigger-word", "mycat", "--set", "width_px=64", "--set", "height_px=72"]
    done = studio.cli(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "3 training pictures"
    folder = Path(done.stdout.splitlines()[1])
    assert {Image.open(path).size for path in folder.glob("*.png")} == {(64, 72)}
    assert captions(folder) == {"0-0": "1girl, red hat", "0-1": "1girl, blue sky", "0-2": "mycat"}
    assert "WD14 tagger (ViT), 379 MB" in done.stderr, "nothing here writes captions, and that is said once"
    assert "--with wd14 --download" in done.stderr
    assert done.stderr.splitlines()[-1] == "finished"

    listed = answer(studio.cli("dataset", "list", *TO, "--json"))
    assert (listed["trained"], listed["waiting"]) == (3, 0)
    assert [(picture["width_px"], picture["height_px"]) for picture in listed["pictures"]] == [(64, 72)] * 3
    again = answer(studio.cli("dataset", "update", *TO, "--json"))
    assert Image.open(next(Path(again["folders"][0]).glob("*.png"))).size == (64, 72), "settings are remembered"


def test_wrong_settings_are_told_together_and_nothing_is_saved(studio: Studio, made: Path) -> None:
    wrong = ["--set", "widht_px=8", "--set", "wd14_treshold=1", "--set", "height_px=tall", "--set", "flip=true"]
    told = answer(studio.cli("dataset", "update", *TO, *wrong, "--json"), 2)
    assert told["error"] == "ConfigError"
    assert told["message"].splitlines() == [
        "widht_px: there is no setting of this name (did you mean width_px?)",
        "wd14_treshold: there is no setting of this name (did you mean wd14_threshold?)",
        "height_px (Height): 'tall' is not a whole number from 64 to 2048",
    ]
    version = json.loads((made.parents[2] / "version.json").read_text(encoding="utf-8"))
    assert version["dataset"]["flip"] is False


def test_check_tells_and_ends_with_0(studio: Studio, made: Path) -> None:
    done = studio.cli("dataset", "check", *TO)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "3 training pictures."
    few = lines.index("Worth a look: There are few pictures: the LoRA may learn them by heart. (3, limit 5)")
    assert lines[few + 1].startswith("    -> Add others")

    picture = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(picture).save(made / "new.png")
    told = studio.cli("dataset", "check", *TO, "--json")
    report = answer(told)

    assert report["missing_facts"] == 0, "what was not known yet is looked at first"
    assert len(report["pictures"]) == 4
    assert {"few_pictures", "sizes"} <= {finding["kind"] for finding in report["findings"]}


def test_what_does_not_exist_is_named_with_what_does(studio: Studio, made: Path) -> None:
    for command in (["dataset", "update"], ["dataset", "check"], ["dataset", "list"], ["captions", "list"]):
        told = answer(studio.cli(*command, "--name", "cat", "--workspace", "作業 場", "--json"), 1)
        assert told["message"].startswith("There is no project 'cat' in ")
        assert told["hint"] == f"There are: {NAME}."
    told = answer(studio.cli("dataset", "check", *TO, "--version", "v2", "--json"), 1)
    assert (told["message"], told["hint"]) == (f"{NAME} has no version 'v2'.", "There are: v1.")
    projects = answer(studio.cli("dataset", "list", "--workspace", "作業 場", "--json"))["projects"]
    assert [(project["name"], project["versions"][0]["trained"]) for project in projects] == [(NAME, 3)]
    nothing = studio.cli("dataset", "list", "--workspace", "empty")
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert "There is no project yet" in nothing.stderr


def test_what_was_made_is_trained_as_it_is(studio: Studio, made: Path) -> None:
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    origin = sorted(path.name for path in (made.parents[1] / "origin").iterdir())
    quick = ["--base-model", "demo", "--rank", "2", "--epochs", "1", "--repeats", "1", "--set", "cpu_threads=1"]
    told = answer(studio.cli("train", *TO, *quick, "--json"))
    assert (told["state"], told["step"]) == ("finished", 3)
    lora = Path(told["loras"][0])
    assert lora.parent.parent == made.parents[2] / "trains"
    assert '"mycat' in str(lora.read_bytes()[:20_000]), "the saved trigger word"
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before
    assert sorted(path.name for path in (made.parents[1] / "origin").iterdir()) == origin

    both = answer(studio.cli("train", *TO, *quick, "--images", "絵", "--version", "v2", "--json"), 2)
    assert "leave one of the two out" in both["message"]
    nowhere = answer(studio.cli("train", *TO, *quick, "--version", "v2", "--json"), 1)
    assert (nowhere["error"], nowhere["hint"]) == ("WorkspaceError", "There are: v1.")
    model = answer(studio.cli("train", *TO, "--base-model", "", "--json"), 2)
    assert "none was chosen" in model["message"]


# --- captions by a model ---


def test_a_model_writes_captions(studio: Studio, made: Path, taggers: Any) -> None:
    taggers.make_colour_tagger(studio.root / "タガー")
    nothing = answer(studio.cli("caption", *TO, "--json"), 1)
    assert nothing["message"] == "Nothing is chosen to write captions."
    assert "BLIP, 991 MB" in nothing["hint"]

    chosen = ["--with", "wd14", "--model", "タガー", "--set", "wd14_threshold=0.45"]
    done = studio.cli("caption", *TO, *chosen, "--policy", "prepend", "0-1.png", f"{made.name}/0-2.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2 captions written, 0 kept as they were\n"
    told = captions(made)
    assert told["0-0"] == "1girl, red hat"
    assert told["0-1"].startswith("1girl, blue sky, ")
    assert told["0-1"].endswith(">_<")

    again = answer(studio.cli("caption", *TO, "--policy", "overwrite", "--json"))
    assert again["result"] == {"captions": 3, "kept": 0}, "the model is remembered"
    assert not any("1girl" in caption for caption in captions(made).values())
    kept = [path.read_text(encoding="utf-8") for path in (studio.root / "作業 場" / "trash").rglob("0-1.txt")]
    assert told["0-1"] in kept, "what was overwritten is in the trash"

    assert answer(studio.cli("caption", *TO, "--with", "none", "--json"))["result"] == {"captions": 0}
    assert answer(studio.cli("caption", *TO, "--json"), 1)["message"] == "Nothing is chosen to write captions."


def test_a_model_of_the_hub_is_fetched_on_request_and_writes_captions(
    studio: Studio, made: Path, taggers: Any, hub: Hub
) -> None:
    taggers.make_colour_tagger(studio.root / "colours")
    files = {path.name: path.read_bytes() for path in (studio.root / "colours").iterdir()}
    hub.offer(find_model("somebody/colours", "wd14"), files)
    chosen = ["--with", "wd14", "--model", "somebody/colours"]
    absent = answer(studio.cli("caption", *TO, *chosen, "--json"), 1)
    assert absent["message"].startswith("somebody/colours is not here yet. Download it")
    assert hub.asked == []
    told = studio.cli("caption", *TO, "--download", "--policy", "overwrite", "--json")
    assert answer(told)["result"] == {"captions": 3, "kept": 0}
    assert "Downloading somebody/colours." in told.stderr
    assert {path.name for path in studio.root.rglob("somebody--colours/*")} == {*files, ".hub.json"}
    assert not any("1girl" in caption for caption in captions(made).values())
    hub.asked.clear()
    assert answer(studio.cli("caption", *TO, "--download", "--json"))["result"] == {"captions": 0, "kept": 3}
    assert hub.asked == [], "it is there"


def test_what_cannot_write_captions(studio: Studio, made: Path) -> None:
    before = captions(made)
    for line, code, words in (
        ("--download", 1, "Nothing is chosen"),
        ("--with wd14", 1, "WD14 tagger is not here yet."),
        ("--with wd14 --model .", 1, "it must hold model.onnx and selected_tags.csv"),
        ("--model .", 2, "--model: say what it is, by --with wd14 or --with blip"),
        ("--with blip --model nobody/nothing", 1, "nobody/nothing is not here yet."),
        ("--with none --download", 2, "--with none"),
        ("--policy replace", 2, "invalid choice: 'replace'"),
        ("--set width_px=64 --set blip_beams=0", 2, "blip_beams (Beams): '0' is not a whole number from 1 to 16"),
    ):
        told = answer(studio.cli("caption", *TO, *line.split(), "--json"), code)
        assert words in told["message"]
        assert captions(made) == before


@pytest.mark.skipif(sys.platform == "win32", reason="a console's Ctrl-C can't be sent to one process there")
def test_ctrl_c_stops_a_download(studio: Studio, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a hub that takes the call and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.delenv("HF_HUB_OFFLINE")
        fetching = studio.background(
            "caption", *TO, "--with", "wd14", "--download", "--json",
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        hub.settimeout(60)
        with hub.accept()[0]:
            asked_at = time.monotonic()
            fetching.send_signal(signal.SIGINT)
            output, errors = (stream.decode("utf-8") for stream in fetching.communicate(timeout=180))
    assert time.monotonic() - asked_at < 15, "long before the connection is given up"
    assert fetching.returncode == 1
    assert "Traceback" not in errors
    assert "Downloading wd-vit-tagger-v3." in errors
    assert "Stopping." in errors
    assert json.loads(output.splitlines()[-1])["state"] == "stopped"


# --- captions by hand ---


def test_edits_are_shown_done_undone_and_done_again(studio: Studio, made: Path) -> None:
    before = captions(made)
    arguments = ["captions", "edit", *TO, "--filter", "1girl, *blue*", "--add", "hat, 青", "--at", "start"]
    dry = studio.cli(*arguments, "--dry-run")
    assert dry.stdout.splitlines() == [
        f"{made.name}/0-1.png",
        "    before: 1girl, blue sky",
        "    after:  hat, 青, 1girl, blue sky",
    ]
    assert captions(made) == before
    done = studio.cli(*arguments)
    assert (done.returncode, done.stdout) == (0, "Add tags hat, 青: 1 of 1 captions changed\n")
    assert captions(made) == {**before, "0-1": "hat, 青, 1girl, blue sky"}
    assert studio.cli("captions", "undo", *TO).stdout == "Add tags hat, 青: undone in 1 captions\n"
    assert captions(made) == before
    assert answer(studio.cli("captions", "undo", *TO, "--json"), 1)["message"] == "There is nothing to undo."
    assert answer(studio.cli("captions", "redo", *TO, "--json"))["changed"] == 1
    assert captions(made)["0-1"] == "hat, 青, 1girl, blue sky"
    assert answer(studio.cli("captions", "redo", *TO, "--json"), 1)["message"] == "There is nothing to redo."


def test_every_operation(studio: Studio, made: Path) -> None:
    """On one caption, each after the other."""
    for arguments, expected in (
        (["--prepend", "photo"], "photo, 1girl, blue sky"),
        (["--append", "sky, SKY"], "photo, 1girl, blue sky, sky, SKY"),
        (["--dedupe"], "photo, 1girl, blue sky, sky"),
        (["--trigger-first"], "mycat, photo, 1girl, blue sky, sky"),
        (["--add", "day", "--at", "after-trigger"], "mycat, day, photo, 1girl, blue sky, sky"),
        (["--sort", "length"], "mycat, day, sky, 1girl, photo, blue sky"),
        (["--replace", "(blue) (sky)", r"\2 \1", "--within", "tag-expression"],
         "mycat, day, sky, 1girl, photo, sky blue"),
        (["--replace", "blue", "grey", "--within", "text"], "mycat, day, sky, 1girl, photo, sky grey"),
        (["--replace", "photo", ""], "mycat, day, sky, 1girl, sky grey"),
        (["--remove", "day, sky"], "mycat, 1girl, sky grey"),
        (["--set-text", "a sentence"], "a sentence"),
    ):  # fmt: skip
        done = answer(studio.cli("captions", "edit", *TO, "--filter", "*sky*", *arguments, "--json"))
        assert (done["pictures"], done["changed"]) == (1, 1), arguments
        assert captions(made)["0-1"] == expected


def test_a_filter_that_lets_nothing_through(studio: Studio, made: Path) -> None:
    done = studio.cli("captions", "edit", *TO, "--filter", "dog", "--remove", "1girl")
    assert (done.returncode, done.stdout) == (0, "Remove tags 1girl: 0 of 0 captions changed\n")
    assert done.stderr == "The filter lets no picture through.\n"
    assert answer(studio.cli("captions", "list", *TO, "--filter", "dog", "--json"))["rows"] == []
    some = answer(studio.cli("captions", "list", *TO, "--filter", "red hat, mycat", "--any", "--json"))
    assert [row["caption"] for row in some["rows"]] == ["1girl, red hat", "mycat"]
    without = answer(studio.cli("captions", "list", *TO, "--filter=-1girl", "--json"))
    assert [row["caption"] for row in without["rows"]] == ["mycat"]


def test_edits_that_cannot_be(studio: Studio, made: Path) -> None:
    before = captions(made)
    for arguments, words in (
        (["--filter", "/(/", "--dedupe"], "The regular expression ( is wrong at character 1"),
        (["--replace", "(", "x", "--within", "caption-expression"], "The regular expression ( is wrong"),
        (["--filter", '"open', "--dedupe"], "what begins with"),
        (["--sort", "length", "--at", "end"], "--at: belongs to --add"),
        (["--dedupe", "--within", "text"], "--within: belongs to --replace"),
        (["--any", "--dedupe"], "--any: belongs to --filter"),
        (["--add", " , "], "Type at least one tag."),
        (["--add", "x", "--remove", "y"], "not allowed with argument --add"),
        (["--dry-run"], "one of the arguments --add"),
        (["--replace", "x"], "expected 2 arguments"),
    ):
        told = answer(studio.cli("captions", "edit", *TO, *arguments, "--json"), 2)
        assert told["error"] == "ConfigError"
        assert words in told["message"]
        assert captions(made) == before


def test_show_is_what_is_trained(studio: Studio, made: Path) -> None:
    done = studio.cli("captions", "show", *TO, "0-1.png")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{made.name}/0-1.png, epoch 1"
    assert lines[1] == "Text      mycat, 1girl, blue sky"
    told = answer(studio.cli("captions", "show", *TO, f"{made.name}/0-1.png", "--json"))
    assert told["plain"]["token_count"] > 5
    assert {view["text"] for view in told["views"]} == {"mycat, 1girl, blue sky"}
    assert len(told["views"]) == told["view_count"] == len([line for line in lines if line.endswith("blue sky")]) - 1
    assert "There is no picture" in answer(studio.cli("captions", "show", *TO, "9.png", "--json"), 1)["message"]
    epoch = studio.cli("captions", "show", *TO, "0-1.png", "--epoch", "0", "--json")
    assert "Epoch: 0 is not a whole number" in answer(epoch, 2)["message"]


@pytest.mark.parametrize("line", ["dataset", "captions", "dataset add --name x", "captions show --name x", "caption"])
def test_bad_arguments_exit_with_2(studio: Studio, line: str) -> None:
    assert answer(studio.cli(*line.split(), "--json"), 2)["error"] == "ConfigError"
    assert not (studio.root / "outputs").exists()
