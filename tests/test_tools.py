import json
import shutil
import sys

import pytest
import torch
from PIL import Image

import pictures as drawing
from tools import compare, export, predict


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
    assert [line.split(":")[0] for line in out.splitlines()] == [names[0], names[2], names[3]]
    assert len(error.splitlines()) == 1 and "text.png" in error
    assert predict.main(["--run", str(finished), "--json", names[0]]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["file"] == names[0] and {entry["name"] for entry in answer["classes"]} == {"cat", "dog", "owl"}
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
    assert compare.main([str(finished), str(other), "--picture", str(picture)]) == 0
    head, one, two, _ = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["run", "network", "parameters", "lr"]
    assert "0.05" in one and "0.07" in two and "fast" in one and picture.read_bytes().startswith(b"\x89PNG")
    assert compare.main([str(tmp_path / "none")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_export_agrees_with_torch(finished, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="onnxruntime is optional")
    pytest.importorskip("onnxscript", reason="onnxscript is optional")
    assert export.main([str(finished), "--onnx", str(tmp_path / "network.onnx")]) == 0
    assert "largest difference" in capsys.readouterr().out


def test_export_says_what_to_install(finished, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export.main([str(finished)]) == 2
    error = capsys.readouterr().err
    assert "pip install" in error and len(error.splitlines()) == 1


def test_tensorboard_is_optional(call, arguments, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code, _, error = call(*arguments, "tensorboard=true")
    assert code == 2 and "pip install tensorboard" in error and len(error.splitlines()) == 1


def test_tensorboard_gets_scalars_and_pictures(call, arguments, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is optional")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    assert call(*arguments, "tensorboard=true")[0] == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("test_accuracy")] == [1, 2] and {"samples", "curves"} <= set(events.Tags()["images"])


def test_accuracy_is_drawn_over_the_seconds_spent_so_far():
    runs = {"a": [{"seconds": 2.0, "test_accuracy": 50.0}, {"seconds": 3.0, "test_accuracy": 60.0}], "b": []}
    figure = drawing.over_seconds(runs, "title")
    first, second = figure.axes[0].lines
    assert (list(first.get_xdata()), list(first.get_ydata()), list(second.get_xdata())) == ([2, 5], [50, 60], [])
    assert [text.get_text() for text in figure.legends[0].texts] == ["a", "b"] and first.get_color() != second.get_color()
    assert figure.get_suptitle() == "title"


def test_grid_shows_every_picture_under_its_caption():
    figure = drawing.grid(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), ["a", "b", "c"], 2, "title")
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c", ""] and [len(axes.images) for axes in figure.axes] == [1, 1, 1, 0]
    assert len(drawing.grid(torch.zeros(0, 3, 8, 8), [], 5, "no mistakes").axes) == 5
