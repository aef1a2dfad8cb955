import json
import shutil
import sys

import pytest
from PIL import Image

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
    assert answer["file"] == names[0] and {entry["name"] for entry in answer["classes"]} == {
        "cat",
        "dog",
        "owl",
    }
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


def test_predict_with_more_views(finished, pictures, capsys):
    answers = []
    for views in ("1", "2", "6"):
        call = ["--run", str(finished), "--json", "--views", views, str(pictures / "test" / "dog" / "0.png")]
        assert predict.main(call) == 0
        answers.append(json.loads(capsys.readouterr().out)["classes"])
    assert answers[0] != answers[1] != answers[2] and all(len(each) == 3 for each in answers)
    assert predict.main(["--views", "3", "picture.png"]) == 2
    assert "--views" in capsys.readouterr().err
