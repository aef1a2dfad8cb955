import os
import re
import signal
import subprocess
import sys
import tarfile
from types import SimpleNamespace

import pytest
import torch

import train
from benchmarks import gpu, throughput, time_to_accuracy
from harness import devices, folder


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


def test_every_batch_is_whole_for_a_shorter_one_is_compiled_anew():
    assert throughput.IMAGES % 1024 == 0


@pytest.mark.parametrize("compiles", [True, False])
def test_the_gpu_plan_runs_on_a_cpu_and_ends_in_two_files(
    pictures, tmp_path, at_step, monkeypatch, capsys, compiles
):
    def here(plan, name, *arguments):  # in this process, which is quicker
        code = train.main(list(arguments))
        return SimpleNamespace(poll=lambda: None, send_signal=lambda number: None, wait=lambda *_: code)

    at_step(4, lambda: signal.raise_signal(signal.SIGINT))  # in the second epoch of the first training
    monkeypatch.setattr(gpu.Plan, "start", here)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(throughput, "IMAGES", 40)
    for name, value in (("SEEDS", 1), ("MEASURED", 0.01), ("START", 0), ("FEWEST", 1)):
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(devices, "cannot_compile", lambda device: "" if compiles else "no compiler")
    monkeypatch.setattr(devices, "compile_in_place", lambda network, device: None)
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
    assert len(re.findall(r"^\| 0 \| (?:off|on) \| [\d.]+% \|", report, re.MULTILINE)) == 1 + compiles
    assert (
        len(re.findall(r"^\| `(?:fast|accurate)` \| (?:off|on) \| [\d,]+ \|", report, re.MULTILINE))
        == 2 + 2 * compiles
    )
    assert ("torch.compile does not work here (no compiler)" in report) != compiles
    assert re.search(r"^\| 2 \| [\d.]+% \| [\d.]+ \|", report, re.MULTILINE)
    with tarfile.open(tmp_path / "out" / "runs.tar.gz") as archive:
        names = archive.getnames()
    for name in ("smoke", "fast-seed0-off", *(["fast-seed0-on"] if compiles else []), "accurate"):
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
