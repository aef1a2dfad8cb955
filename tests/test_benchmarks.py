import pytest

import model
from benchmarks import convolutions, receptive_fields, throughput


@pytest.mark.parametrize("name", ["s8", "s8-separable", "s8-strided", "accurate"])
def test_a_central_output_depends_on_the_receptive_field_and_no_more(name):
    size = 96
    seen = receptive_fields.gradient(name, initialisations=2, images=2, size=size) > 0
    assert seen.any(0).sum() == seen.any(1).sum() == model.receptive_field(model.build(name)) < size


def test_receptive_fields_are_drawn_and_unknown_networks_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(receptive_fields, "gradient", lambda name: receptive_fields.torch.ones(64, 64))
    assert receptive_fields.main(["--out", str(tmp_path / "seen.png")]) == 0
    assert (tmp_path / "seen.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="2"):
        receptive_fields.main(["s9"])


def test_study_of_convolutions_tables_draws_and_goes_on(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(convolutions, "variants", lambda: ["s8-strided", "s8-pooled"])
    monkeypatch.setattr(convolutions, "spent", lambda rows: 1.9 * len(rows))
    folder = tmp_path / "study"
    pairs = [pair for pair in arguments if not pair.startswith(("out=", "epochs="))]
    call = [*pairs, "--epochs", "2", "--seconds", "6", "--out", str(folder)]
    assert convolutions.main(call) == 0
    table = (folder / "table.md").read_text()
    assert (
        "accuracy after 2 epochs | accuracy in 6 s" in table
        and len(table.splitlines()) == 4
        and (folder / "accuracy.png").exists()
    )
    for name, line in zip(convolutions.variants(), table.splitlines()[2:]):
        equal, timed = (
            convolutions.folder.read_metrics(folder / f"{name}-{epochs}" / "metrics.csv") for epochs in (2, 3)
        )
        assert line.startswith(f"| `{name}` | 194,480 |") and len(equal) == 2 and len(timed) == 3
        assert line.endswith(
            f"| {equal[-1].test_accuracy:.2f}% | {timed[-1].test_accuracy:.2f}% | 3 | 6 s |"
        )
    capsys.readouterr()
    kept = folder / "s8-pooled-2" / "metrics.csv"
    rows = convolutions.folder.read_metrics(kept)
    convolutions.folder.write_metrics(kept, [row._replace(test_accuracy=12.34) for row in rows])
    assert convolutions.main(call) == 0  # everything is there: nothing is trained anew
    assert "epoch  " not in capsys.readouterr().out
    assert f"| 12.34% | {timed[-1].test_accuracy:.2f}% | 3 |" in (folder / "table.md").read_text()
    with pytest.raises(SystemExit, match="2"):
        convolutions.main([*call, "--epochs", "0"])
    assert "epochs=0" in capsys.readouterr().err


def test_bad_input_gets_one_line(tmp_path, capsys):
    for call, words in (
        (
            lambda: convolutions.main(
                ["--out", str(tmp_path / "study"), "dataset=folder", f"data_dir={tmp_path / 'none'}"]
            ),
            "no such folder",
        ),
        (lambda: throughput.main(["s9"]), "s9"),
        (lambda: convolutions.main(["lr=x"]), "lr"),
    ):
        assert call() == 2
        error = capsys.readouterr().err
        assert words in error and len(error.splitlines()) == 1
    assert not (tmp_path / "study").exists()
