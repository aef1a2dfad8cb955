"""The study of convolutions: its script, its pictures, and that its page says what its table holds."""

import re
import signal
import statistics
from collections import Counter
from functools import partial

import pytest
import torch
import yaml
from torch import nn

import model
from harness import settings as configuration
from harness.errors import UserError
from harness.folder import read_metrics
from study import draw, run, table
from study.table import EQUAL_EPOCHS, EQUAL_SECONDS, LEARNT_FILTERS, Run

PAGE = (table.HERE / "README.md").read_text(encoding="utf-8")
DENSE = Run("dense", 20, 0, EQUAL_EPOCHS)


@pytest.fixture(scope="module")
def recorded():
    return table.read(table.HERE)


def section(kind):
    """What the page says of a kind, from its heading on."""
    return PAGE.split(f": `{kind}`\n")[1].split("\n##")[0]


# The page


def test_the_page_has_the_table_that_the_script_prints(capsys):
    assert run.main(["--page"]) == 0
    printed = capsys.readouterr().out
    tables = [line for line in PAGE.splitlines(keepends=True) if line.startswith("|")]
    assert printed == "".join(tables) and printed.count("\n| `") == len(model.STUDY)


@pytest.mark.parametrize("kind", model.STUDY)
def test_the_page_has_a_drawing_and_the_right_numbers_of_each_kind(kind):
    text = " ".join(section(kind).split())
    drawn = re.search(r"!\[[^]]+\]\(([\w-]+)\.png\)", text)[1]
    assert (table.HERE / f"{drawn}.png").exists()
    looks_like = [[draw.title(layer) for layer in draw.steps(name)] for name in (kind, drawn)]
    assert looks_like[0] == looks_like[1]
    width = model.STUDY[kind].keywords["widths"][1]
    layers = model.STUDY[kind].keywords.get("kind", model.dense)(width, width)
    count = sum(model.count_parameters(layer) for layer in layers if not isinstance(layer, nn.BatchNorm2d))
    assert f"= {count:,} weights" in text
    code = re.findall(r"`(Conv2d\(.+?\))`", text)
    convolutions = [eval(line, {"Conv2d": partial(nn.Conv2d, bias=False)}) for line in code]
    assert sum(map(model.count_parameters, convolutions)) == count


def test_the_code_on_the_page_prints_what_stands_behind_it(capsys):
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(code, {})
        assert capsys.readouterr().out.splitlines() == re.findall(r"print\(.*\)  # (.*)", code)


def test_the_page_claims_what_the_table_holds(recorded):
    """Sentences of the page, one after another."""
    mean = {kind: statistics.mean(table.accuracies(recorded, kind)) for kind in model.STUDY}
    last = {
        kind: [recorded.runs[Run(kind, 20, seed, EQUAL_EPOCHS)][-1] for seed in range(3)] for kind in mean
    }
    spent = {kind: table.seconds(recorded, kind) / table.seconds(recorded, "dense") for kind in model.STUDY}
    moved = {kind: table.bytes_moved(model.build(kind)) for kind in model.STUDY}
    work = {kind: model.multiply_adds(model.build(kind)) for kind in model.STUDY}
    timed = {kind: table.timed_accuracy(recorded, kind) for kind in model.STUDY}
    assert round(mean["dense"] - mean["pointwise"]) == 10
    assert all(row.train_accuracy < row.test_accuracy for row in last["pointwise"])
    for kind in ("dense-5x5", "dilated", "asymmetric"):
        assert 2 < mean["dense"] - mean[kind] < 3.5
    for kind in ("separable", "inverted"):
        assert abs(mean["dense"] - mean[kind]) < 0.5 and work[kind] < work["dense"]
    assert 1 / 7 < 1 - work["separable"] / work["dense"] < 1 / 5 and round(spent["separable"], 1) == 1.6
    assert round(moved["separable"] / moved["dense"]) == 3 and round(moved["inverted"] / moved["dense"]) == 6
    windows = [kind for kind in model.STUDY if not kind.startswith("dense-") or kind == "dense-5x5"]
    assert all(timed["dense"] - timed[kind] > 1 for kind in windows if kind != "dense")
    smaller = [mean[kind] for kind in ("dense", "dense-averaged", "dense-strided")]
    assert max(smaller) - min(smaller) < 1
    deviation = {kind: statistics.stdev(table.accuracies(recorded, kind)) for kind in model.STUDY}
    assert round(deviation.pop("bottleneck"), 1) == 1.2
    assert {round(min(deviation.values()), 1), round(max(deviation.values()), 1)} == {0.1, 0.5}
    assert mean["grouped"] < mean["separable"] and spent["grouped"] > spent["separable"]
    assert mean["gated"] < mean["separable"]
    knows = {kind: [round(row.train_accuracy) for row in last[kind]] for kind in ("bottleneck", "dense")}
    assert (min(knows["bottleneck"]), max(knows["bottleneck"])) == (77, 79) and set(knows["dense"]) == {88}
    assert min(last, key=lambda kind: statistics.mean(row.test_loss for row in last[kind])) == "inverted"
    assert max(spent, key=spent.get) == "inverted"
    assert f"{mean['dense-unpooled'] - mean['dense']:.1f} points" in section("dense-unpooled")
    assert round(work["dense-unpooled"] / work["dense"]) == 3
    best = max(table.accuracies(recorded, "dense-residual"))
    assert best < min(table.accuracies(recorded, "dense"))
    hours = sum(recorded.about["train_images"] * each.epochs / rate(recorded, each) for each in recorded.runs)
    assert f"trains for {hours / 3600:.1f} hours" in PAGE


def rate(study, each):
    """Images per second of the kind of a run."""
    return study.about["images_per_second"][each.network]


def test_what_the_page_says_of_learnt_filters_is_recorded(recorded):
    text = " ".join(PAGE.split())
    whitened, learnt = recorded.runs[DENSE], recorded.runs[DENSE._replace(purpose=LEARNT_FILTERS)]
    lead = [one.test_accuracy - other.test_accuracy for one, other in zip(whitened, learnt)]
    assert min(lead[:8]) > 0 and f"lead by up to {max(lead[:8]):.1f} points" in text
    ends = f"{whitened[-1].test_accuracy:.2f}% where the learnt ones end at {learnt[-1].test_accuracy:.2f}%"
    assert f"end at {ends}" in text


# The table


def test_the_recorded_runs_are_whole_and_of_the_settings_named(recorded, tmp_path):
    about = recorded.about
    purposes = Counter(each.purpose for each in recorded.runs)
    assert purposes == {EQUAL_EPOCHS: 3 * len(model.STUDY), EQUAL_SECONDS: 10, LEARNT_FILTERS: 1}
    assert set(recorded.runs) == set(run.planned(about, list(model.STUDY), seeds=3))
    common = run.common_settings(table.HERE, [])
    without = {"dataset", "data_dir", "device", "precision", "compile", "checkpoint_minutes", "tensorboard"}
    assert set(about["settings"]) == configuration.FIELDS.keys() - without - set(run.OWN)
    for each, rows in recorded.runs.items():
        settings = configuration.read([*common, *run.own_settings(each)])
        assert [row.epoch for row in rows] == list(range(1, each.epochs + 1))
        lrs = [settings.lr * settings.gamma**epoch for epoch in range(each.epochs)]
        assert [row.lr for row in rows] == pytest.approx(lrs, rel=1e-5)
        assert settings.step_size == 1 and settings.whiten == (each.purpose != LEARNT_FILTERS)
    table.write_runs(tmp_path / "metrics.csv", recorded.runs)
    written, kept = ((folder / "metrics.csv").read_text("utf-8") for folder in (tmp_path, table.HERE))
    assert written == kept


def test_a_damaged_table_is_told_by_its_line(tmp_path):
    head = ",".join(Run._fields + table.Row._fields)
    (tmp_path / "metrics.csv").write_text(f"{head}\ndense,2,0,{EQUAL_EPOCHS},1,1,1,1,1,1,1\ndense,2\n")
    with pytest.raises(UserError, match="metrics.csv, line 3: is no row"):
        table.read_runs(tmp_path / "metrics.csv")


def test_the_run_in_equal_seconds_has_the_nearest_number_of_epochs():
    about = {"epochs": 20, "images_per_second": {"dense": 100, "gated": 62, "dilated": 98, "inverted": 1}}
    assert table.timed_run(about, "gated") == Run("gated", 12, 0, EQUAL_SECONDS)
    assert table.timed_run(about, "dilated") == Run("dilated", 20, 0, EQUAL_EPOCHS)
    assert table.timed_run(about, "inverted").epochs == 1
    assert table.timed_run(about, "grouped") is None


def test_what_layers_move_is_counted():
    images = 32 * 32 * 3
    layers = [nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(), nn.Flatten()]
    assert table.bytes_moved(nn.Sequential(*layers)) == 2 * (images + 3 * 32 * 32 * 4)


# The script


def test_a_study_is_trained_stopped_gone_on_with_and_tabulated(
    pictures, tmp_path, capsys, monkeypatch, at_step
):
    out = tmp_path / "mine"
    call = ["dataset=folder", f"data_dir={pictures}", "device=cpu", "crop=2", "--out", str(out)]
    call += ["--only", "dense,separable", "--epochs", "2", "--seeds", "2"]
    monkeypatch.setattr(run, "ROUNDS", 1)
    at_step(4, lambda: signal.raise_signal(signal.SIGINT))  # the first two show the speeds
    assert run.main(call) == 130
    assert "the same command goes on" in capsys.readouterr().err
    stopped = read_metrics(out / "dense-2-seed0" / "metrics.csv")
    about = table.read(out).about
    assert len(stopped) == 1 and not table.read(out).runs
    assert (about["epochs"], about["train_images"], about["settings"]["crop"]) == (2, 21, 2)
    assert set(about["images_per_second"]) == {"dense", "separable"}
    assert all(speed > 0 for speed in about["images_per_second"].values())

    run.write_about(out, about | {"images_per_second": {"dense": 300, "separable": 150}})
    assert run.main(call) == 0
    study, printed = table.read(out), capsys.readouterr().out
    timed, learnt = Run("separable", 1, 0, EQUAL_SECONDS), Run("dense", 2, 0, LEARNT_FILTERS)
    equal = [Run(kind, 2, seed, EQUAL_EPOCHS) for seed in (0, 1) for kind in ("dense", "separable")]
    assert list(study.runs) == [*equal, timed, learnt]
    assert study.runs[equal[0]][0] == stopped[0]
    assert printed.endswith(
        f"6 of 6: dense-2-seed0-learnt {learnt_accuracy(study):.2f}%\n{table.markdown(study)}\n"
    )
    for each, rows in study.runs.items():
        assert rows == read_metrics(out / run.run_name(each) / "metrics.csv")
        config = yaml.safe_load((out / run.run_name(each) / "config.yaml").read_text(encoding="utf-8"))
        asked = [config[name] for name in ("network", "epochs", "seed", "whiten", "step_size", "crop")]
        assert asked == [*each[:3], each.purpose != LEARNT_FILTERS, 1, 2]
        assert config["gamma"] == round(0.02 ** (1 / each.epochs), 4)
    scores = [study.runs[each][-1].test_accuracy for each in equal[1::2]]
    row = table.markdown(study).splitlines()[-1]
    assert row.startswith("| `separable` |") and "| 150 |" in row
    assert f"{statistics.mean(scores):.2f} ± {statistics.stdev(scores):.2f}% (2 seeds)" in row
    assert row.endswith(f"| {study.runs[timed][-1].test_accuracy:.2f}% (1 epochs) |")
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(run.train, "main", None)  # nothing is trained anew
    table.write_runs(out / "metrics.csv", {each: study.runs[each] for each in equal})
    assert run.main(call) == run.main([*call, "--page"]) == 0
    assert table.read(out) == study
    capsys.readouterr()
    for changed, words in (
        (["--epochs", "4"], f"epochs 4: the runs in {out} have 2"),
        (["lr=0.5"], f"lr 0.5: the runs in {out} have 0.3"),
        (["--seeds", "3", "dataset=synthetic"], "data synthetic pictures"),
    ):
        assert run.main([*call, *changed]) == 2
        error = capsys.readouterr().err
        assert words in error and "choose another --out" in error and len(error.splitlines()) == 1


def learnt_accuracy(study):
    """Of the last epoch of the run for learnt filters."""
    return list(study.runs.values())[-1][-1].test_accuracy


SHORT = {"data": "pictures", "train_images": 21, "epochs": 2, "settings": {}}


@pytest.mark.parametrize("content", [b"", b"a: [", b"\xff", b"- 1", b"epochs: two", b"epochs: 2"])
def test_a_damaged_study_is_named(tmp_path, capsys, content):
    (tmp_path / "about.yaml").write_bytes(content)
    for call in (["--page"], ["--only", "dense"]):
        assert run.main(["--out", str(tmp_path), *call]) == 2
        error = capsys.readouterr().err
        assert "about.yaml: is damaged" in error and len(error.splitlines()) == 1
    run.write_about(tmp_path, SHORT | {"images_per_second": {}})
    (tmp_path / "metrics.csv").write_bytes(b"\xff\n\xff\n")
    assert run.main(["--out", str(tmp_path), "--page"]) == 2
    assert "metrics.csv, line 2" in capsys.readouterr().err


def test_on_another_machine_no_speed_is_added(tmp_path, monkeypatch):
    monkeypatch.setattr(run.train, "main", None)
    about = SHORT | {"machine": "two cores of something else", "images_per_second": {"dense": 100}}
    run.write_about(tmp_path, about)
    assert run.measure_speeds(tmp_path, ["dense", "gated"], ["device=cpu"]) == 0
    assert table.read(tmp_path).about == about


def test_a_training_that_fails_ends_the_study(tmp_path, monkeypatch):
    monkeypatch.setattr(run.train, "main", lambda arguments: 2)
    about = SHORT | {"machine": run.describe_machine(["device=cpu"]), "images_per_second": {}}
    run.write_about(tmp_path, about)
    assert run.measure_speeds(tmp_path, ["dense"], ["device=cpu"]) == 2
    assert table.read(tmp_path).about == about


def test_bad_input_gets_one_line(tmp_path, capsys):
    out = ["--out", str(tmp_path / "study")]
    for call, words in (
        (lambda: run.main([*out, "dataset=folder", f"data_dir={tmp_path / 'none'}"]), "no such folder"),
        (lambda: run.main([*out, "--page"]), "holds no study"),
        (lambda: run.main([*out, "lr=x"]), "lr"),
        (lambda: run.main(["lr=0.1"]), "with --out"),
        (lambda: run.main([*out, "seed=1"]), "seed=1: the study sets that itself"),
        (lambda: run.main(["--only", "dense,round"]), "--only round: choose from dense, "),
        (lambda: run.main(["--seeds", "0"]), "--seeds"),
        (lambda: draw.main(["--nosuch"]), "--nosuch"),
    ):
        assert call() == 2
        error = capsys.readouterr().err
        assert words in error and len(error.splitlines()) == 1
    assert not (tmp_path / "study").exists()


# The pictures


def test_the_plot_has_a_line_for_each_kind(recorded):
    left, right = draw.accuracy(recorded).axes
    kinds = [label.get_text() for label in left.get_yticklabels()]
    assert sorted(kinds) == sorted(model.STUDY) and kinds[-1] == "dense-unpooled"
    assert [text.get_text() for text in right.get_legend().get_texts()] == [
        "seconds of training",
        "multiply-adds",
    ]
    few = recorded._replace(runs={DENSE: recorded.runs[DENSE]})
    assert [label.get_text() for label in draw.accuracy(few).axes[0].get_yticklabels()] == ["dense"]


@pytest.mark.parametrize("name", ["s8", "s8-strided", "accurate", "separable", "gated", "dense-unpooled"])
def test_a_central_output_depends_on_the_receptive_field_and_no_more(name):
    size = 128
    seen = draw.gradient(name, initialisations=2, images=2, size=size) > 0
    assert seen.any(0).sum() == seen.any(1).sum() == model.receptive_field(model.build(name)) < size


def test_all_pictures_are_drawn_each_to_its_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(draw, "gradient", lambda name: torch.ones(64, 64))
    monkeypatch.setattr(draw, "accuracy", lambda study: draw.Figure())
    monkeypatch.setattr(model, "STUDY", {name: model.STUDY[name] for name in ("dense-residual", "gated")})
    assert draw.main(["--out", str(tmp_path / "new")]) == 0
    drawn = {path.stem for path in (tmp_path / "new").iterdir()}
    assert drawn == {"accuracy", "receptive_fields", "dense-residual", "gated"}
    with pytest.raises(model.NetworkError, match="unknown network 's9'"):
        draw.fields(["s9"])


@pytest.mark.parametrize(
    "kind, counts",
    [
        ("dense", [72]),
        ("dense-5x5", [200]),
        ("asymmetric", [24, 24]),
        ("dilated", [72]),
        ("grouped", [18, 8]),
        ("separable", [9, 8]),
        ("bottleneck", [8, 36, 4]),
        ("inverted", [8, 9, 24]),
        ("gated", [9, 8]),
        ("pointwise", [8]),
        ("dense-strided", [72]),
        ("dense-averaged", [4, 72]),
        ("dense-residual", [72]),
    ],
)
def test_drawings_show_as_many_pixels_as_a_kernel_has_weights(kind, counts):
    assert [int(draw.reads(layer).sum()) for layer in draw.steps(kind)] == counts
    assert [int(draw.reads(layer, right=1).sum()) for layer in draw.steps(kind)] == counts  # none cut off


def test_first_filters_are_drawn_each_at_its_own_scale(finished, tmp_path, capsys):
    weights = torch.zeros(2, 3, 2, 2)
    weights[0, 0], weights[1, :, 0] = 0.1, -5
    picture = draw.tiled(weights)
    assert picture.shape == (3, 4, 7) and picture[:, 1, 1].tolist() == [1, 0.5, 0.5]
    assert picture[:, 1, 4].tolist() == [0, 0, 0] and picture[:, 2, 4].tolist() == [0.5] * 3
    out = ["--out", str(tmp_path)]
    assert draw.main([*out, "--filters", *[str(finished / "last.pt")] * 2]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["filters.png"]
    assert draw.main([*out, "--filters", *[str(finished / "metrics.csv")] * 2]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
