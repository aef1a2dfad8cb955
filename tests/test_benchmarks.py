import os
import re
import signal
import subprocess
import sys
import tarfile
from types import SimpleNamespace

import pytest
import torch

import data
import model
import train
from benchmarks import candidates, gpu, throughput, time_to_accuracy
from harness import folder
from harness import settings as configuration


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


def test_throughput_is_that_of_the_weights_named(finished, monkeypatch, capsys):
    def look(parts, seconds):
        network = parts[0].args[0].network  # of its Training
        found.append(torch.equal(network[0].weight, saved["weights"]["0.weight"]))
        return [1.0] * len(parts)

    found, weights = [], finished / "best.pt"
    saved = torch.load(weights)
    monkeypatch.setattr(throughput, "IMAGES", 40)
    monkeypatch.setattr(throughput, "medians", look)
    assert throughput.main([saved["network"], f"weights={weights}", "device=cpu"]) == 0
    assert found == [True, True]
    assert throughput.main(["s8", f"weights={weights}", "device=cpu"]) == 2
    error = capsys.readouterr().err
    assert f"weights={weights}: " in error and len(error.splitlines()) == 1


def test_bad_input_gets_one_line(tmp_path, capsys):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "metrics.csv").write_text(folder.metrics_text([]))
    for call, words in (
        (lambda: throughput.main(["s9"]), "s9"),
        (lambda: time_to_accuracy.main(["--seeds", "some"]), "--seeds"),
        (lambda: time_to_accuracy.main(["--runs", str(tmp_path)]), "metrics.csv: there is no such file"),
        (lambda: time_to_accuracy.main(["--runs", str(tmp_path / "begun")]), "begun: has no whole epoch"),
        (lambda: time_to_accuracy.main(["--seeds", "0"]), "--seeds must be at least 1"),
        (lambda: time_to_accuracy.main(["--each", "lr='0.1"]), "No closing quotation"),
    ):
        assert call() == 2
        error = capsys.readouterr().err
        assert words in error and len(error.splitlines()) == 1


def test_the_gpu_plan_runs_on_a_cpu_and_ends_in_two_files(pictures, tmp_path, at_step, monkeypatch, capsys):
    def here(plan, name, *arguments):  # in this process, which is quicker
        code = train.main(list(arguments))
        return SimpleNamespace(poll=lambda: None, send_signal=lambda number: None, wait=lambda *_: code)

    at_step(4, lambda: signal.raise_signal(signal.SIGINT))  # in the second epoch of the first training
    monkeypatch.setattr(gpu.Plan, "start", here)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(throughput, "IMAGES", 40)
    for name, value in (("SEEDS", 1), ("MEASURED", 0.01), ("START", 0), ("FEWEST", 1)):
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(torch, "compile", None)  # then it goes on without
    recipe = tmp_path / "accurate.yaml"
    recipe.write_text("network: s8-strided\nepochs: 2\nstep_size: 1\nsmall_epochs: 0\n")
    monkeypatch.setattr(gpu, "RECIPE", recipe)
    from_here = os.path.relpath(pictures)
    asked = ["dataset=folder", f"data_dir={from_here}", "device=cpu", "epochs=2", "batch_size=8"]
    assert gpu.main([*asked, "--minutes", "100", "--out", "out"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.md", "runs.tar.gz"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "stopped: exit code 130, after 1 epochs" in report
    assert "resumed: done, 3 epochs" in report and "did not end" not in report
    assert len(re.findall(r"^\| 0 \| (?:off|on) \| [\d.]+% \|", report, re.MULTILINE)) == 2
    assert len(re.findall(r"^\| `(?:fast|accurate)` \| (?:off|on) \| [\d,]+ \|", report, re.MULTILINE)) == 4
    assert re.search(r"^\| 2 \| [\d.]+% \| [\d.]+ \|", report, re.MULTILINE)
    with tarfile.open(tmp_path / "out" / "runs.tar.gz") as archive:
        names = archive.getnames()
    for name in ("smoke", "fast-seed0-off", "fast-seed0-on", "accurate"):
        assert {f"runs/{name}/metrics.csv", f"runs/{name}/config.yaml", f"runs/{name}/best.pt"} <= set(names)


def test_the_gpu_plan_ends_in_time(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = ["dataset=folder", f"data_dir={pictures}", "device=cpu", "epochs=99999"]
    monkeypatch.setattr(gpu, "smoke", lambda plan: plan.tell("trained" if plan.train("long") else "stopped"))
    assert gpu.main([*asked, "--minutes", "0.05", "--out", "out"]) == 0
    with tarfile.open(tmp_path / "out" / "runs.tar.gz") as archive:
        assert "runs/long.log" in archive.getnames()
    report = (tmp_path / "out" / "report.md").read_text()
    assert "stopped" in report and "## fast" not in report


def test_the_gpu_plan_tells_mistakes_first_and_that_a_training_failed(
    pictures, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for wrong in (["device=tpu"], ["dataset=folder", "data_dir=nowhere"]):
        assert gpu.main([*wrong, "--out", "out"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1 and not list(tmp_path.iterdir())
    monkeypatch.setattr(gpu.Plan, "start", lambda *_: SimpleNamespace(wait=lambda _: 1))
    monkeypatch.setattr(gpu, "smoke", lambda plan: plan.train("failed"))
    for part in ("fast", "measure", "accurate"):
        monkeypatch.setattr(gpu, part, lambda *_: None)
    assert gpu.main(["dataset=folder", f"data_dir={pictures}", "device=cpu", "--out", "out"]) == 1


@pytest.mark.parametrize("name", candidates.DESIGNS)
def test_every_design_is_small_and_gives_logits(name):
    network = candidates.DESIGNS[name](10, 0)
    assert 180_000 < model.count_parameters(network) < 200_000
    images = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    assert network(images).shape == (2, 10)


def test_channel_attention_weighs_each_channel_by_itself_and_its_neighbours():
    attention = candidates.ChannelAttention()
    images = torch.randn(2, 8, 4, 4)
    weights = attention(images) / images
    assert torch.allclose(weights, weights.mean((2, 3), keepdim=True).expand_as(weights), atol=1e-4)
    changed = images.clone()
    changed[:, 5] += 1
    differ = (attention(changed) / changed).mean((2, 3)) - weights.mean((2, 3))
    assert (differ.abs() > 1e-4).any(0).nonzero().flatten().tolist() == [4, 5, 6]


def test_small_weights_are_spared_weight_decay():
    optimizer = candidates.spared(model.build("accurate").parameters(), lr=0.1, weight_decay=0.5)
    others, small = optimizer.param_groups
    assert (others["weight_decay"], small["weight_decay"]) == (0.5, 0)
    assert {tuple(weight.shape[1:]) for weight in small["params"]} == {(), (1, 3, 3)}
    assert len(others["params"]) + len(small["params"]) == len(list(model.build("accurate").parameters()))


@pytest.mark.parametrize("name", [name for name, trial in candidates.TRIALS.items() if trial.change])
def test_training_images_are_changed_four_at_a_time_and_test_images_are_not(name):
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8).expand(64, 3, 32, 32)
    split = data.Split(images, torch.zeros(64, dtype=torch.long))
    info = data.Info("one image", ["0"], [0.0] * 3, [1 / 255] * 3, 64, 64, "test")
    torch.manual_seed(0)
    for seed, least, most in ((None, 1, 1), (0, 6, 16)):
        loader = candidates.ChangedLoader(candidates.TRIALS[name].change, split, info, 64, seed=seed)
        batch = next(loader.batches()).images
        assert least <= len(batch.unique(dim=0)) <= most
        assert batch.shape == (64, 3, 32, 32) and batch.is_contiguous(memory_format=torch.channels_last)


def test_trials_are_trained_gone_on_with_and_tabulated(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(model, "NETWORKS", dict(model.NETWORKS))
    monkeypatch.setitem(configuration.FIELDS, "network", (str, model.NETWORKS))
    monkeypatch.setattr(train, "SGD", train.SGD)
    monkeypatch.setattr(train, "Loader", train.Loader)
    used = []

    def main(words, main=train.main):
        used.append((train.SGD, getattr(train.Loader, "func", train.Loader)))
        return main(words)

    monkeypatch.setattr(train, "main", main)
    call = ["dataset=folder", f"data_dir={pictures}", "holdout=3", "epochs=1", "batch_size=8", "device=cpu"]
    call += ["--only", "smoothing-0,decay-5e-4-spared,erasing,g8b2", "--out", str(tmp_path)]
    assert candidates.main(call) == candidates.main(call) == 0
    plain = (torch.optim.SGD, data.Loader)
    changed = (torch.optim.SGD, candidates.ChangedLoader)
    assert used == [plain, (candidates.spared, data.Loader), changed, plain] * 2
    out = capsys.readouterr().out
    assert out.count("epoch   1/1") == 4 and out.count("nothing to do") == 4
    head, *lines = (tmp_path / "trials.csv").read_text().splitlines()
    assert head.split(",") == candidates.COLUMNS and len(lines) == 4
    starts = ("smoothing-0,0,accurate,label_smoothing=0 ", "decay-5e-4-spared,0,", "erasing,0,", "g8b2,0,")
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True))
    kept = configuration.of_run(tmp_path / "smoothing-0-seed0")
    assert (kept.label_smoothing, kept.cutmix, kept.step_size, kept.holdout) == (0, 0.5, 6, 3)
    assert candidates.main(["--only", "vgg"]) == 2
    assert "vgg: choose from recipe" in capsys.readouterr().err
    assert candidates.main([*call, "--only", "taught-by-two"]) == 2
    assert "recipe-seed0" in capsys.readouterr().err
    assert candidates.main([*call, "--only", "recipe,taught-by-one"]) == 0
    taught = configuration.of_run(tmp_path / "taught-by-one-seed0")
    assert taught.teachers == str(tmp_path / "recipe-seed0" / "last.pt")
