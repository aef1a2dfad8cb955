import re
import subprocess
import sys
import tarfile
import time

import pytest
import torch

import model
import train
from benchmarks import (
    candidates,
    convolutions,
    filters,
    gpu,
    kernels,
    receptive_fields,
    throughput,
    time_to_accuracy,
)
from harness import settings as configuration


@pytest.mark.parametrize("name", ["s8", "s8-strided", "accurate", "separable", "gated", "dense-unpooled"])
def test_a_central_output_depends_on_the_receptive_field_and_no_more(name):
    size = 128
    seen = receptive_fields.gradient(name, initialisations=2, images=2, size=size) > 0
    assert seen.any(0).sum() == seen.any(1).sum() == model.receptive_field(model.build(name)) < size


def test_receptive_fields_are_drawn_and_unknown_networks_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(receptive_fields, "gradient", lambda name: receptive_fields.torch.ones(64, 64))
    assert receptive_fields.main(["--out", str(tmp_path / "seen.png")]) == 0
    assert (tmp_path / "seen.png").read_bytes().startswith(b"\x89PNG")
    assert receptive_fields.main(["s9"]) == 2
    assert "unknown network 's9'" in capsys.readouterr().err


def test_study_of_convolutions_trains_tabulates_draws_and_goes_on(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(convolutions, "RECORDED", tmp_path / "study")
    call = ["dataset=folder", f"data_dir={pictures}", "batch_size=8", "device=cpu"]
    call += ["--only", "dense,separable", "--epochs", "3", "--seeds", "2", "--out", str(tmp_path / "study")]
    monkeypatch.setattr(convolutions, "speeds", lambda dataset, pairs: {"dense": 300, "separable": 200})
    assert convolutions.main(call) == 0
    study = convolutions.Study(tmp_path / "study")
    assert capsys.readouterr().out == f"{study.table()}\n" and len(study.table().splitlines()) == 4
    runs = [f"dense-3-seed{seed}" for seed in (0, 1)] + ["separable-2-seed0"]
    runs += [f"separable-3-seed{seed}" for seed in (0, 1)]
    assert sorted(path.parent.name for path in study.root.glob("*/metrics.csv")) == runs
    for name, epochs in (("dense", 3), ("separable", 2)):
        scores = [study.rows(name, 3, seed)[-1].test_accuracy for seed in (0, 1)]
        assert convolutions.spread(scores) in study.line(name) and "± " in convolutions.spread(scores)
        timed = study.rows(name, epochs, 0)[-1].test_accuracy
        assert study.line(name).endswith(f" {timed:.2f}% ({epochs} epochs) |")
    settings = configuration.read((), study.run("separable", 2, 0) / "config.yaml")
    assert (settings.epochs, settings.step_size, settings.gamma) == (2, 1, 0.1414)
    assert {path.name for path in study.root.glob("*.png")} == {"multiply_adds.png", "seconds.png"}
    monkeypatch.setattr(convolutions.train, "main", None)  # nothing is trained anew
    monkeypatch.setattr(convolutions, "PAGE", tmp_path / "page.md")
    page = "| `separable` | ?\n\n## One\n`separable` ends at ?\n| `gated` | ?\n"
    convolutions.PAGE.write_text(page, encoding="utf-8")
    for _ in range(2):
        assert convolutions.main(call) == convolutions.main(["--table"]) == convolutions.main(["--page"]) == 0
        written = f"{study.line('separable')}\n\n## One\n{study.sentence('separable')}\n| `gated` | ?\n"
        assert convolutions.PAGE.read_text(encoding="utf-8") == written
    assert convolutions.main([*call, "--epochs", "4"]) == 2
    assert "made with epochs 3, not 4" in capsys.readouterr().err


def test_a_study_that_was_stopped_goes_on(pictures, tmp_path, monkeypatch):
    call = ["dataset=folder", f"data_dir={pictures}", "batch_size=8", "device=cpu", "--only", "dense"]
    call += ["--epochs", "2", "--seeds", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(convolutions, "MEASURED", 0.01)
    monkeypatch.setattr(model, "STUDY", {name: model.STUDY[name] for name in ("dense", "separable")})
    whole, calls = convolutions.train.main, []

    def stopped(argv):
        calls.append(argv)
        return whole([*argv, "epochs=1"]) or 130

    monkeypatch.setattr(convolutions.train, "main", stopped)
    assert convolutions.main(call) == 130
    monkeypatch.setattr(
        convolutions.train, "main", lambda argv: calls.append(argv) or whole([*argv, "epochs=2"])
    )
    assert convolutions.main(call) == 0
    run = tmp_path / "dense-2-seed0"
    assert calls[1] == ["--resume", str(run)] and len(calls) == 2
    assert len(convolutions.folder.read_metrics(run / "metrics.csv")) == 2
    assert all(rate > 0 for rate in convolutions.Study(tmp_path).about["images_per_second"].values())


def test_what_layers_move_is_counted():
    images = 32 * 32 * 3
    layers = [torch.nn.Conv2d(3, 4, 1, bias=False), torch.nn.ReLU(), torch.nn.Flatten()]
    assert convolutions.moved(torch.nn.Sequential(*layers)) == 2 * (images + 3 * 32 * 32 * 4)


@pytest.mark.parametrize(
    "name, counts",
    [
        ("dense", [72]),
        ("dense-5x5", [200]),
        ("asymmetric", [24, 24]),
        ("grouped", [18, 8]),
        ("separable", [9, 8]),
        ("bottleneck", [8, 36, 4]),
        ("inverted", [8, 9, 24]),
        ("gated", [9, 8]),
        ("pointwise", [8]),
        ("dense-averaged", [4, 72]),
        ("dense-residual", [72]),
    ],
)
def test_drawings_show_as_many_pixels_as_a_kernel_has_weights(name, counts):
    assert [int(kernels.reads(layer).sum()) for layer in kernels.steps(name)] == counts


def test_kinds_are_drawn_each_to_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(model, "STUDY", {name: model.STUDY[name] for name in ("dense-residual", "gated")})
    assert kernels.main(["--out", str(tmp_path)]) == 0
    assert {path.stem for path in tmp_path.iterdir()} == set(model.STUDY)


def test_first_filters_are_drawn_each_at_its_own_scale(finished, tmp_path, capsys):
    weights = torch.zeros(2, 3, 2, 2)
    weights[0, 0], weights[1, :, 0] = 0.1, -5
    picture = filters.tiled(weights)
    assert picture.shape == (3, 4, 7) and picture[:, 1, 1].tolist() == [1, 0.5, 0.5]
    assert picture[:, 1, 4].tolist() == [0, 0, 0] and picture[:, 2, 4].tolist() == [0.5] * 3
    assert filters.main([str(finished / "last.pt")] * 2 + ["--out", str(tmp_path / "seen.png")]) == 0
    assert (tmp_path / "seen.png").read_bytes().startswith(b"\x89PNG")
    assert filters.main([str(finished / "metrics.csv")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_configurations_take_turns_and_are_compared(arguments, tmp_path, monkeypatch, capsys):
    def run(command):  # in this process, which is quicker
        assert command[:2] == [sys.executable, str(time_to_accuracy.TRAIN)]
        return subprocess.CompletedProcess(command, train.main(command[2:]))

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time_to_accuracy, "GOALS", (0, 101))
    pairs = [pair for pair in arguments if not pair.startswith(("out=", "epochs="))]
    each = [f"{time_to_accuracy.TRAIN} epochs=1 network=s8-strided", "epochs=2"]
    assert time_to_accuracy.main([*pairs, "--seeds", "2", "--each", *each]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^epoch +\d/(\d)", out, re.MULTILINE) == ["1", "2", "2"] * 2
    assert out.count("101%: reached by 0 of 2") == out.count("the whole command took") == 2
    found = re.search(r"^0%: .*s8-strided takes ([\d.]+) ± [\d.]+ of epochs=2", out, re.MULTILINE)
    assert float(found[1]) > 0
    assert time_to_accuracy.main([*pairs, "lr=x", "--each", ""]) == 2


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
        (lambda: convolutions.main(["--only", "dense,round"]), "--only round: choose from dense, "),
        (lambda: convolutions.main(["--seeds", "0"]), "--seeds"),
        (lambda: kernels.main(["--nosuch"]), "--nosuch"),
        (lambda: time_to_accuracy.main(["--seeds", "some"]), "--seeds"),
        (lambda: time_to_accuracy.main(["--runs", str(tmp_path)]), "metrics.csv: there is no such file"),
    ):
        assert call() == 2
        error = capsys.readouterr().err
        assert words in error and len(error.splitlines()) == 1
    assert not (tmp_path / "study").exists()


def test_the_gpu_plan_runs_on_a_cpu_and_ends_in_two_files(pictures, tmp_path, monkeypatch, capsys):
    apart = gpu.Plan.train

    def resume(command, **_):
        return subprocess.CompletedProcess(command, train.main(command[2:]))

    def run(plan, name, *arguments):  # but for the first in this process, which is quicker
        if name == "smoke":
            return apart(plan, name, *arguments)
        return train.main([*plan.pairs, *arguments, f"out={plan.runs / name}"]) == 0

    monkeypatch.setattr(subprocess, "run", resume)
    monkeypatch.setattr(gpu.Plan, "train", run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(throughput, "IMAGES", 40)
    for name, value in (("SEEDS", 1), ("MOST_SEEDS", 1), ("MEASURED", 0.01)):
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(convolutions, "EPOCHS", 1)
    monkeypatch.setattr(model, "STUDY", {"dense": model.STUDY["dense"]})
    known = {name: model.NETWORKS[name] for name in ("accurate", "fast", "dense")}
    monkeypatch.setattr(model, "NETWORKS", known)
    asked = ["dataset=folder", f"data_dir={pictures}", "device=cpu", "epochs=1", "batch_size=8"]
    assert gpu.main([*asked, "--minutes", "30", "--out", "out"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.md", "runs.tar.gz"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "first epoch: done" in report and "resumed: done" in report and "time for this part" not in report
    assert report.count("| off |") == 2 * len(model.NETWORKS)
    assert len(re.findall(r"^\| 0 \| [\d.]+% \|", report, re.MULTILINE)) == 2 and "| `dense` | " in report
    with tarfile.open(tmp_path / "out" / "runs.tar.gz") as archive:
        names = archive.getnames()
    for name in ("smoke", "fast-seed0", "accurate-seed0", "study-dense"):
        assert {f"{name}/metrics.csv", f"{name}/config.yaml", f"{name}/best.pt"} <= set(names)
    assert "smoke.log" in names


def test_the_gpu_plan_ends_in_time(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = ["dataset=folder", f"data_dir={pictures}", "device=cpu", "epochs=99999"]
    monkeypatch.setattr(gpu, "smoke", lambda plan: iter(["first" if plan.train("long") else "stopped"]))
    monkeypatch.setattr(gpu, "rates", lambda plan: (gpu.time.sleep(0.2) or "rate" for _ in range(10**6)))
    began = time.monotonic()
    assert gpu.main([*asked, "--minutes", "0.05", "--out", "out"]) == 0
    assert time.monotonic() - began < 40
    assert "stopped" in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "report.md").read_text().count("The time for this part was over.") == 5
    assert gpu.main(["device=tpu", "--out", "out"]) == 2


@pytest.fixture
def known(monkeypatch):
    """The candidates among the networks, for one test."""
    monkeypatch.setattr(model, "NETWORKS", model.NETWORKS | candidates.CANDIDATES)
    monkeypatch.setitem(configuration.FIELDS, "network", (str, model.NETWORKS))


@pytest.mark.parametrize("name", candidates.CANDIDATES)
def test_every_candidate_is_small_and_gives_logits(known, name):
    network = model.build(name)
    assert model.count_parameters(network) < 200_000
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_weights_used_twice_are_the_same_weights_with_norms_of_their_own():
    once, twice = (candidates.Bottleneck(16, 16, 1, uses=uses).eval() for uses in (1, 2))
    twice.convolutions.load_state_dict(once.convolutions.state_dict())
    images = torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        assert torch.allclose(twice(images), once(once(images)), atol=1e-5)
    assert len(twice.norms) == 2 and twice.norms[0][0] is not twice.norms[1][0]


def test_residual_pairs_of_plain_start_as_the_identity_and_learn():
    torch.manual_seed(0)
    pairs = [layer for layer in candidates.plain(10, 0) if isinstance(layer, model.Residual)]
    assert len(pairs) == 5
    for pair in pairs:
        images = torch.randn(4, pair[0].in_channels, 8, 8)
        assert torch.equal(pair(images), images)
        pair(images).square().sum().backward()
        assert pair[4].weight.grad.abs().sum() > 0


def test_candidates_are_trained_gone_on_with_and_listed(known, pictures, tmp_path, capsys):
    call = ["dataset=folder", f"data_dir={pictures}", "holdout=3", "epochs=1", "batch_size=8", "device=cpu"]
    call += ["--only", "gates,deep", "--out", str(tmp_path)]
    assert candidates.main(call) == candidates.main(call) == 0
    out = capsys.readouterr().out
    assert out.count("epoch   1/1") == 2 and "held-out accuracy" in out
    assert len(re.findall(r"^\| `(?:gates|deep)` \| 19[\d,]+ \| [\d.]+ million \|", out, re.MULTILINE)) == 4
    assert candidates.main(["--only", "vgg"]) == 2
    assert "vgg: choose from shared" in capsys.readouterr().err
