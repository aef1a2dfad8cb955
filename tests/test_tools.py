import json
import os
import re
import runpy
import shutil
import signal
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

import data
import tools
from harness.errors import UserError
from tools import compare, export, predict

ROOT = Path(tools.__file__).parent.parent
SCRIPTS = [
    "train.py",
    "model.py",
    "data.py",
    "tools/compare.py",
    "tools/export.py",
    "tools/predict.py",
]
SCRIPTS += ["benchmarks/gpu.py", "benchmarks/throughput.py", "benchmarks/time_to_accuracy.py"]
SCRIPTS += ["study/run.py", "study/draw.py"]


@pytest.fixture(scope="module")
def own(finished, tmp_path_factory):
    """The folder of a run whose network is not one of ours."""
    run = shutil.copytree(finished, tmp_path_factory.mktemp("own") / "run")
    config = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(config.replace("network: fast", "network: mine"), encoding="utf-8")
    for name in ("best.pt", "last.pt"):
        saved = torch.load(run / name, weights_only=True)
        torch.save(saved | {"network": "mine"}, run / name)
    return run


@pytest.fixture
def gallery(tmp_path):
    """Pictures of several kinds, and a file that is none."""
    Image.new("L", (300, 100), 90).save(tmp_path / "grey.png")
    Image.new("RGBA", (64, 64), (10, 20, 30, 40)).save(tmp_path / "clear.png")
    Image.new("CMYK", (40, 40), (0, 99, 0, 0)).save(tmp_path / "print.jpg")
    (tmp_path / "text.png").write_text("no picture")
    return tmp_path


def test_predict_answers_every_picture_and_names_what_is_none(gallery, finished, capsys):
    names = [str(gallery / name) for name in ("grey.png", "text.png", "clear.png", "print.jpg")]
    assert predict.main(["--run", str(finished), *names]) == 2
    out, error = capsys.readouterr()
    assert [line.split(": ")[0] for line in out.splitlines()] == [names[0], names[2], names[3]]
    assert len(error.splitlines()) == 1 and "text.png" in error
    assert predict.main([names[0], "--run", str(finished), "--json", names[0]]) == 0
    answer, again = map(json.loads, capsys.readouterr().out.splitlines())
    assert (
        answer == again
        and answer["file"] == names[0]
        and {entry["name"] for entry in answer["classes"]}
        == {
            "cat",
            "dog",
            "owl",
        }
    )
    assert sum(entry["probability"] for entry in answer["classes"]) == pytest.approx(1, abs=1e-5)


def test_predict_with_the_shipped_weights(gallery, capsys):
    assert predict.main([str(gallery / "grey.png")]) == 0
    assert capsys.readouterr().out.count("%") == 3
    assert predict.SHIPPED.stat().st_size < 1_000_000


def test_predict_without_a_run(tmp_path, capsys):
    assert predict.main(["--run", str(tmp_path / "none"), "x.png"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_compare_tables_and_draws_what_differs(finished, tmp_path, capsys):
    other = shutil.copytree(finished, tmp_path / "other")
    (other / "config.yaml").write_text((finished / "config.yaml").read_text().replace("lr: 0.05", "lr: 0.07"))
    picture = tmp_path / "both.png"
    assert compare.main([str(finished), "--picture", str(picture), str(other)]) == 0
    head, one, two, _ = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["run", "network", "parameters", "lr"]
    assert "0.05" in one and "0.07" in two and "fast" in one and picture.read_bytes().startswith(b"\x89PNG")
    assert compare.main([str(tmp_path / "none"), "--picture", str(tmp_path / "none.png")]) == 2
    out, error = capsys.readouterr()
    assert len(error.splitlines()) == 1 and not out and not (tmp_path / "none.png").exists()


def test_export_agrees_with_torch(finished, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="onnxruntime is optional")
    pytest.importorskip("onnxscript", reason="onnxscript is optional")
    assert export.main([str(finished), "--onnx", str(tmp_path / "network.onnx")]) == 0
    assert "largest difference" in capsys.readouterr().out


def test_export_may_try_the_network_on_other_data(finished, monkeypatch, capsys):
    def stop(*_):
        raise UserError("as far as this test goes")

    for name in ("onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(export, "write", stop)
    assert export.main([str(finished), "dataset=synthetic"]) == 2
    assert capsys.readouterr().err == "error: as far as this test goes\n"


def test_export_says_what_to_install(finished, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export.main([str(finished)]) == 2
    error = capsys.readouterr().err
    assert "pip install" in error and len(error.splitlines()) == 1


def test_predict_with_more_views(finished, pictures, capsys):
    answers = []
    for views in ("1", "2", "6"):
        call = ["--run", str(finished), "--json", "--views", views, str(pictures / "test" / "dog" / "0.png")]
        assert predict.main(call) == 0
        answers.append(json.loads(capsys.readouterr().out)["classes"])
    assert answers[0] != answers[1] != answers[2] and all(len(each) == 3 for each in answers)
    assert predict.main(["--views", "3", "picture.png"]) == 2
    assert "--views" in capsys.readouterr().err


def cells(out):
    """The table that compare printed, without its last line: a dictionary a run."""
    head, *lines, _ = out.splitlines()
    places = [found.start() for found in re.finditer(r"(?:^|(?<=  ))\S", head)]
    rows = [[line[a:b].strip() for a, b in zip(places, [*places[1:], None])] for line in [head, *lines]]
    return [dict(zip(rows[0], row)) for row in rows[1:]]


def test_compare_shows_what_can_be_read_and_names_what_cannot(finished, own, tmp_path, capsys):
    good = shutil.copytree(finished, tmp_path / "good")
    broken = {
        "no-metrics": lambda run: (run / "metrics.csv").unlink(),
        "empty-metrics": lambda run: (run / "metrics.csv").write_text(""),
        "half-a-row": lambda run: (run / "metrics.csv").write_text("epoch,lr\n1,0.1\n"),
        "no-text": lambda run: (run / "metrics.csv").write_bytes(b"\xff\xfe\x00"),
        "half-a-config": lambda run: (run / "config.yaml").write_text("network: fast\nlr: 'x"),
        "empty": lambda run: shutil.rmtree(run) or run.mkdir(),
    }
    for name, damage in broken.items():
        damage(shutil.copytree(finished, tmp_path / name))
    (tmp_path / "notes.txt").write_text("stray")
    picture = tmp_path / "all.png"
    assert compare.main([*map(str, sorted(tmp_path.iterdir())), str(own), "--picture", str(picture)]) == 2
    out, error = capsys.readouterr()
    assert [row["run"] for row in cells(out)] == [str(good), str(own)] and picture.exists()
    lines = error.splitlines()
    assert len(lines) == len(broken) + 1 and f"error: {tmp_path / 'notes.txt'}: is no run folder" in lines
    assert all(any(str(tmp_path / name) in line for line in lines) for name in broken)


def test_compare_counts_the_parameters_of_any_network(finished, own, tmp_path, capsys):
    unknown = shutil.copytree(own, tmp_path / "unknown", ignore=shutil.ignore_patterns("*.pt"))
    recorded = shutil.copytree(finished, tmp_path / "recorded", ignore=shutil.ignore_patterns("*.pt"))
    kept = shutil.copytree(recorded, tmp_path / "kept")
    shutil.copy(finished / "best.pt", kept / "weights.pt")
    runs = [str(finished), str(own), str(unknown), str(recorded), str(kept)]
    assert compare.main([*runs, "--picture", str(tmp_path / "all.png")]) == 0
    rows = cells(capsys.readouterr().out)
    assert [row["network"] for row in rows] == ["fast", "mine", "mine", "fast", "fast"]
    three = f"{197_872 - 7 * 72:,}"  # classes, not ten
    assert [row["parameters"] for row in rows] == [three, three, "?", "197,872", three]


def test_compare_takes_runs_of_other_versions_without_epochs_and_of_held_out_images(
    finished, tmp_path, capsys, monkeypatch
):
    config = (finished / "config.yaml").read_text(encoding="utf-8")
    head, *rows = (finished / "metrics.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    for name in ("older", "new", "held-out"):
        shutil.copytree(finished, tmp_path / name)
    older = [line for line in config.splitlines() if not line.startswith(("compile:", "seed:"))]
    (tmp_path / "older" / "config.yaml").write_text(
        "\n".join([*older, "compile: auto", "gone: 1", "rotate: 15"])
    )
    (tmp_path / "new" / "metrics.csv").write_text(head)
    (tmp_path / "held-out" / "metrics.csv").write_text("".join([head.replace("test", "heldout"), *rows]))
    labels = []
    draw = compare.pictures.over_seconds
    monkeypatch.setattr(
        compare.pictures,
        "over_seconds",
        lambda runs, accuracy: labels.append([*runs, accuracy]) or draw(runs, accuracy=accuracy),
    )
    monkeypatch.chdir(tmp_path)
    assert compare.main(["older", "new", "held-out", "new/"]) == 0
    table = cells(capsys.readouterr().out)
    assert [row["run"] for row in table] == ["older", "new", "held-out"]
    assert [row["scored on"] for row in table] == ["test", "test", "held-out"]
    assert [row["epochs done"] for row in table] == ["2", "0", "2"] and table[1]["best %"] == "-"
    for name, text in (("gone", "1"), ("rotate", "15")):
        assert table[0][name] == text and table[1][name] == "-"
    assert labels == [["older (test)", "new (test)", "held-out (held-out)", "accuracy"]]
    assert compare.main(["held-out"]) == 0
    assert labels[-1] == ["held-out", "held-out accuracy"]
    capsys.readouterr()
    assert compare.main(["new"]) == 0
    assert "scored on" not in capsys.readouterr().out


def test_compare_writes_the_kind_of_picture_that_its_ending_tells(finished, tmp_path, capsys):
    picture = tmp_path / "comparison.jpg"
    assert compare.main([str(finished), "--picture", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\xff\xd8")
    capsys.readouterr()
    assert compare.main([str(finished), "--picture", str(tmp_path / "comparison.doc")]) == 2
    error = capsys.readouterr().err
    assert "comparison.doc" in error and ".png" in error and len(error.splitlines()) == 1


def test_words_that_the_shell_did_not_expand_stand_for_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "[c]"):
        Path(name).touch()
    assert tools.paths(["b", "?", "[c]", "x*"]) == [Path(name) for name in ("b", "a", "b", "[c]", "x*")]


@pytest.mark.parametrize("tool", [compare, export, predict])
def test_tools_say_how_to_call_them_and_know_no_network_of_ones_own(tool, own, monkeypatch, capsys):
    for name in ("onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    assert tool.main([]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and f"python -m {tool.__name__} " in error
    if tool is not compare:
        assert tool.main([str(own)] if tool is export else ["--run", str(own), "cat.jpg"]) == 2
        error = capsys.readouterr().err
        assert "mine" in error and len(error.splitlines()) == 1


def test_predict_takes_any_file_of_weights_and_folders_of_pictures(
    gallery, finished, pictures, tmp_path, capsys
):
    for name in ("last.pt", "best.pt"):
        assert predict.main(["--run", str(finished / name), str(gallery / "grey.png")]) == 0
    for shipped in (predict.SHIPPED, predict.SHIPPED.parent):
        assert predict.main(["--run", str(shipped), str(gallery / "grey.png")]) == 0
    capsys.readouterr()
    for name in (".hidden", "Thumbs.db"):
        (gallery / name).touch()
    (gallery / "deeper").mkdir()
    assert predict.main(["--run", str(finished), str(gallery), str(gallery / "deeper")]) == 2
    out, error = capsys.readouterr()
    answered = [Path(line.split(": ")[0]).name for line in out.splitlines()]
    assert answered == ["clear.png", "grey.png", "print.jpg"]
    assert len(error.splitlines()) == 2 and "text.png" in error and "deeper: is a folder without" in error


def test_predict_takes_pictures_whose_names_are_no_text(finished, pictures, tmp_path, capsys):
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        shutil.copy(pictures / "test" / "dog" / "0.png", name)
    except (OSError, ValueError):
        pytest.skip("file names are UTF-8 here")
    assert predict.main(["--run", str(finished), "--json", os.fsdecode(name)]) == 0
    assert os.fsencode(json.loads(capsys.readouterr().out)["file"]) == name


def test_an_interrupt_ends_predict(finished, monkeypatch, capsys):
    asked = []

    def interrupted(picture):
        asked.append(picture)
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "decode", interrupted)
    assert predict.main(["--run", str(finished), "a.png", "b.png"]) == 130
    assert len(asked) == 1 and len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_can_be_called_by_their_path(script, tmp_path, monkeypatch, capsys):
    ours = ("data", "model", "train", "harness", "tools", "benchmarks", "study")
    for name in [name for name in sys.modules if name.split(".")[0] in ours]:
        monkeypatch.delitem(sys.modules, name)
    elsewhere = [path for path in sys.path if Path(path or ".").resolve() not in (ROOT, ROOT / "tests")]
    monkeypatch.setattr(sys, "path", [str((ROOT / script).parent), *elsewhere])
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert not ended.value.code and "usage" in capsys.readouterr().out
