import re
import subprocess
import sys
import tarfile
import time
from types import SimpleNamespace

import pytest
import torch

import model
import train
from benchmarks import candidates, gpu, throughput, time_to_accuracy
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


def test_bad_input_gets_one_line(tmp_path, capsys):
    for call, words in (
        (lambda: throughput.main(["s9"]), "s9"),
        (lambda: time_to_accuracy.main(["--seeds", "some"]), "--seeds"),
        (lambda: time_to_accuracy.main(["--runs", str(tmp_path)]), "metrics.csv: there is no such file"),
    ):
        assert call() == 2
        error = capsys.readouterr().err
        assert words in error and len(error.splitlines()) == 1


def test_the_gpu_plan_runs_on_a_cpu_and_ends_in_two_files(pictures, tmp_path, monkeypatch, capsys):
    start = gpu.Plan.start

    def here(plan, name, *arguments):  # but for the run that is stopped, in this process, which is quicker
        if "epochs=3" in arguments:
            return start(plan, name, *arguments)
        return SimpleNamespace(wait=lambda _: train.main(list(arguments)))

    monkeypatch.setattr(gpu.Plan, "start", here)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(throughput, "IMAGES", 40)
    for name, value in (("SEEDS", 1), ("MEASURED", 0.01), ("START", 0), ("FEWEST", 1)):
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(torch, "compile", None)  # then it goes on without
    recipe = tmp_path / "accurate.yaml"
    recipe.write_text("network: s8-strided\nepochs: 2\nstep_size: 1\nsmall_epochs: 0\n")
    monkeypatch.setattr(gpu, "RECIPE", recipe)
    asked = ["dataset=folder", f"data_dir={pictures}", "device=cpu", "epochs=2", "batch_size=8"]
    assert gpu.main([*asked, "--minutes", "100", "--out", "out"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.md", "runs.tar.gz"]
    report = (tmp_path / "out" / "report.md").read_text()
    stopped = re.search(r"^stopped: exit code (\d+), after [12] epochs", report, re.MULTILINE)
    assert int(stopped[1]) == 130 or sys.platform == "win32"
    assert "resumed: done, 3 epochs" in report and "did not end" not in report
    assert len(re.findall(r"^\| 0 \| (?:off|on) \| [\d.]+% \|", report, re.MULTILINE)) == 2
    assert len(re.findall(r"^\| `(?:fast|accurate)` \| (?:off|on) \| [\d,]+ \|", report, re.MULTILINE)) == 4
    assert re.search(r"^\| 2 \| [\d.]+% \| [\d.]+ \|", report, re.MULTILINE)
    with tarfile.open(tmp_path / "out" / "runs.tar.gz") as archive:
        names = archive.getnames()
    for name in ("smoke", "fast-seed0-off", "fast-seed0-on", "accurate"):
        assert {f"runs/{name}/metrics.csv", f"runs/{name}/config.yaml", f"runs/{name}/best.pt"} <= set(names)
    assert "runs/smoke.log" in names


def test_the_gpu_plan_ends_in_time(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = ["dataset=folder", f"data_dir={pictures}", "device=cpu", "epochs=99999"]
    began = time.monotonic()
    monkeypatch.setattr(gpu, "smoke", lambda plan: plan.tell("trained" if plan.train("long") else "stopped"))
    assert gpu.main([*asked, "--minutes", "0.05", "--out", "out"]) == 0
    assert time.monotonic() - began < 40
    report = (tmp_path / "out" / "report.md").read_text()
    assert "stopped" in report and "## fast" not in report
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
