import errno
import itertools
import os
import pickle
import random
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from conftest import FILES
from soak import launch, metrics, same_run, soak
from torch import nn

import data
import model
import train
from harness import checkpoint, devices, folder, report, settings
from harness.errors import command
from harness.metrics import best


def test_a_whole_run_and_its_files(call, arguments, tmp_path):
    code, out, error = call(*arguments)
    run = tmp_path / "run"
    assert (code, error) == (0, "")
    assert sorted(path.name for path in run.iterdir()) == FILES
    rows = folder.read_metrics(run / "metrics.csv")
    head = "epoch,lr,train_loss,train_accuracy,test_loss,test_accuracy,seconds\n"
    assert (run / "metrics.csv").read_text().startswith(head)
    assert [row.epoch for row in rows] == [1, 2]
    assert all(0 <= row.test_accuracy <= 100 and row.seconds > 0 for row in rows)
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    kept = settings.read(config=run / "config.yaml")
    assert (kept.epochs, kept.lr, kept.out) == (2, 0.05, str(run))
    assert kept.step_size is None and kept.small_epochs is None  # what was left empty stays empty
    for words in (
        "Conv2d-1",
        "of fewer than 200,000",
        "multiply-adds",
        "receptive field",
        "21 training and 12 test images",
        "epoch   2/2",
        f"test accuracy {rows[-1].test_accuracy:.2f}%",
        "not a result",
        command("python", "train.py", "--evaluate", run),
    ):
        assert words in out, words
    assert ("peak memory" in out) == (sys.platform != "win32")


def test_evaluate_equals_the_last_line_of_training(call, finished):
    code, out, _ = call("--evaluate", finished)
    assert code == 0
    assert f"{folder.read_metrics(finished / 'metrics.csv')[-1].test_accuracy:.2f}% of 12 images" in out
    for name in ("confusion.png", "mistakes.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")
    for words, images in (("cat", 4), ("dog", 4), ("owl", 4), ("in 2 views", 12), ("in 6 views", 12)):
        assert re.search(rf"{words} +[\d.]+% of {images} images", out), words


def test_what_is_kept_of_a_run_can_be_evaluated_also_on_other_data(call, finished, pictures, tmp_path):
    run = tmp_path / "kept"
    run.mkdir()
    shutil.copy(finished / "config.yaml", run)
    shutil.copy(finished / "best.pt", run / "weights.pt")
    top = best(folder.read_metrics(finished / "metrics.csv")).test_accuracy
    code, out, _ = call("--evaluate", run)
    assert code == 0 and f"{top:.2f}% of 12 images" in out and f"{run}: fast, on" in out
    code, _, error = call("--evaluate", run, "dataset=synthetic")
    assert code == 2 and "the run knows 3 classes (cat, dog, owl), the data has 10" in error
    assert call("--resume", run)[0] == 2
    (run / "weights.pt").unlink()
    code, _, error = call("--evaluate", run)
    assert code == 2 and f"{run}: holds no last.pt or weights.pt" in error


def test_the_best_weights_are_ready_for_use(finished, pictures):
    network = model.load(finished / "best.pt")
    found = data.load("folder", pictures)
    right = (network(found.test.images / 255).argmax(1) == found.test.labels).float().mean()
    best = max(row.test_accuracy for row in folder.read_metrics(finished / "metrics.csv"))
    assert not network.training and network.classes == ["cat", "dog", "owl"]
    assert abs(100 * right - best) < 9  # at most one picture apart


def test_best_pt_holds_the_weights_of_the_first_best_epoch(call, arguments, tmp_path, monkeypatch):
    weights = []

    def scored(training, after_batch):
        state = training.average.network.state_dict()
        weights.append({name: value.clone() for name, value in state.items()})
        return 1.0, [40.0, 60.0, 60.0, 50.0][training.epoch]

    monkeypatch.setattr(train, "test_epoch", scored)
    assert call(*arguments, "epochs=4")[0] == 0
    saved = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    assert saved["test_accuracy"] == 60
    assert all(torch.equal(value, weights[1][name]) for name, value in saved["weights"].items())


def test_same_settings_same_run(call, arguments, tmp_path, finished):
    assert call(*arguments)[0] == 0
    assert same_run(tmp_path / "run", finished)
    assert call(*arguments[:-1], "seed=1", f"out={tmp_path / 'other'}")[0] == 0
    assert not same_run(tmp_path / "other", finished)


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
@pytest.mark.parametrize("number", devices.STOPPING)
def test_stopped_and_resumed_is_the_run_that_never_stopped(
    call, arguments, tmp_path, finished, monkeypatch, at_step, batch, number
):
    with monkeypatch.context() as patch:
        at_step(batch, lambda: signal.raise_signal(number), patch)
        code, _, error = call(*arguments)
    run = tmp_path / "run"
    assert code == 128 + number
    assert error == f"stopped and saved; go on with: {command('python', 'train.py', '--resume', run)}\n"
    assert checkpoint.load(run / "last.pt")["step"] == (batch - 1) % 3 + 1
    assert call("--resume", run)[0] == 0
    assert same_run(run, finished)


def test_stopped_in_the_test_and_resumed(call, arguments, tmp_path, finished, monkeypatch):
    with monkeypatch.context() as patch:
        test = train.test_epoch
        patch.setattr(train, "test_epoch", lambda *them: signal.raise_signal(signal.SIGINT) or test(*them))
        assert call(*arguments)[0] == 130
    assert metrics(tmp_path / "run")[1:] == []
    assert call("--resume", tmp_path / "run")[0] == 0
    assert same_run(tmp_path / "run", finished)


def test_checkpoint_minutes_bound_what_is_lost(call, arguments, tmp_path, finished, monkeypatch, at_step):
    class Killed(BaseException):
        pass

    def kill():
        raise Killed

    with monkeypatch.context() as patch:
        at_step(5, kill, patch)
        with pytest.raises(Killed):
            train.main([*arguments, "checkpoint_minutes=1e-9"])
    assert checkpoint.load(tmp_path / "run" / "last.pt")["step"] == 1
    assert call("--resume", tmp_path / "run", "checkpoint_minutes=5")[0] == 0
    assert same_run(tmp_path / "run", finished)


@pytest.mark.parametrize("step", [4, 8])
def test_a_run_that_leaves_out_images_resumes_exactly(call, arguments, tmp_path, at_step, step):
    asked = [*arguments, "epochs=5", "leave_out=0.4", "batch_size=7"]
    assert call(*asked, f"out={tmp_path / 'whole'}")[0] == 0
    at_step(step, lambda: signal.raise_signal(signal.SIGINT))  # in the second epoch, and in the fourth
    assert call(*asked)[0] == 130
    assert call("--resume", tmp_path / "run")[0] == 0
    assert same_run(tmp_path / "run", tmp_path / "whole")


def test_a_taught_run_resumes_exactly_and_only_with_its_teachers(
    call, arguments, tmp_path, finished, at_step, monkeypatch
):
    for number in (1, 2):
        shutil.copy(finished / "best.pt", tmp_path / f"{number}.pt")
    asked = [*arguments, f"teachers={tmp_path / '1.pt'}, {tmp_path / '2.pt'}"]
    code, out, _ = call(*asked, f"out={tmp_path / 'whole'}")
    assert code == 0 and all(f"teacher   {tmp_path / name}: " in out for name in ("1.pt", "2.pt"))
    assert not same_run(tmp_path / "whole", finished)
    with monkeypatch.context() as patch:
        at_step(5, lambda: signal.raise_signal(signal.SIGINT), patch)
        assert call(*asked)[0] == 130
    (tmp_path / "2.pt").rename(tmp_path / "3.pt")
    code, _, error = call("--resume", tmp_path / "run")
    assert code == 2 and f"teachers={tmp_path / '2.pt'}: there is no such file" in error
    saved = torch.load(tmp_path / "3.pt", weights_only=True)
    more = {name: weight + 1 for name, weight in saved["weights"].items()}
    for other in (saved | {"weights": more}, saved | {"mean": [0.1, 0.2, 0.3]}):
        torch.save(other, tmp_path / "2.pt")
        code, _, error = call("--resume", tmp_path / "run")
        assert code == 2 and "teachers: these are not the" in error and len(error.splitlines()) == 1
    code, _, error = call("--resume", tmp_path / "run", "teachers=")
    assert code == 2 and "these are not the 2 networks that the run began with" in error
    moved = f"teachers={tmp_path / '1.pt'},{tmp_path / '3.pt'}"
    assert call("--resume", tmp_path / "run", moved)[0] == 0
    assert same_run(tmp_path / "run", tmp_path / "whole")
    code, _, error = call("--resume", finished, moved)
    assert code == 2 and "teachers: the run began without any" in error


def test_training_images_are_changed_as_the_settings_say(start):
    training = start("flip=false", "crop=3", "autoaugment=true", "cutout=4", "cutmix=0.2")
    assert training.large.augmentation == data.Augmentation(False, 3, True, 4, 0.2)


@pytest.mark.parametrize("cutmix", ["0", "0.5"])
def test_targets_are_half_what_the_teachers_say_of_the_changed_images(start, finished, cutmix):
    changes = ["flip=true", "crop=4", "autoaugment=true", "cutout=8", f"cutmix={cutmix}"]
    training = start(f"teachers={finished / 'last.pt'},{finished / 'best.pt'}", *changes)
    batch = next(training.loader.batches())
    labels = train.ask_teachers(training, batch).labels
    networks = [model.load(finished / name).network for name in ("last.pt", "best.pt")]
    said = sum(network(batch.images).softmax(1) for network in networks) / 2
    own = batch.labels if cutmix != "0" else torch.nn.functional.one_hot(batch.labels, 3)
    assert torch.allclose(labels, (own + said) / 2, atol=0.01)


def test_a_run_that_leaves_out_images_and_stops_in_a_test_resumes_exactly(
    call, arguments, tmp_path, monkeypatch
):
    asked = [*arguments, "epochs=5", "leave_out=0.4"]
    assert call(*asked, f"out={tmp_path / 'whole'}")[0] == 0
    test_epoch, tests = train.test_epoch, []

    def interrupted(*them):
        tests.append(them)
        if len(tests) == 2:  # of the second epoch, the first to leave images out
            signal.raise_signal(signal.SIGINT)
        return test_epoch(*them)

    monkeypatch.setattr(train, "test_epoch", interrupted)
    assert call(*asked)[0] == 130
    assert call("--resume", tmp_path / "run")[0] == 0
    assert same_run(tmp_path / "run", tmp_path / "whole")


def test_seconds_count_what_was_trained_before_a_stop(start):
    training = start()
    training.step, training.seconds = 1, 1000.0
    train.train_epoch(training, lambda training: None)
    assert training.seconds > 1000


def test_the_images_known_best_are_left_out_from_the_second_of_five_epochs_on(start, epochs):
    training = start("epochs=5", "leave_out=0.4", "small_epochs=1")
    for kept in (21, 16, 16, 21, 21):
        before = training.losses.clone()
        epochs(training)
        assert len(training.indices) == kept and training.steps == -(-kept // 8)
        left_out = [image for image in range(21) if image not in training.indices.tolist()]
        changed = (training.losses != before).nonzero().flatten().tolist()
        assert sorted(changed + left_out) == list(range(21))
        if kept < 21:
            assert before[left_out].max() <= before[changed].min()


def test_a_learning_rate_given_when_resuming_holds_from_then_on(call, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "copy")
    code, out, _ = call("--resume", run, "epochs=3", "lr=0.01", "gamma=0.5", "step_size=2")
    assert code == 0 and "at learning rate 0.01\n" in out and "lr: 0.05 before, 0.01 from now on" in out
    kept = settings.read(config=run / "config.yaml")
    assert (kept.epochs, kept.lr, kept.gamma, kept.step_size) == (3, 0.01, 0.5, 2)
    assert call("--resume", run, "epochs=6")[0] == 0  # does not count as given again
    rows = folder.read_metrics(run / "metrics.csv")
    assert [row.epoch for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row.lr for row in rows[2:]] == [0.01, 0.01, 0.005, 0.005]  # falls at epochs that 2 divides


def test_a_longer_run_has_the_learning_rates_of_one_begun_so(call, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "copy")
    assert call("--resume", run, "epochs=10")[0] == 0
    rates = [row.lr for row in folder.read_metrics(run / "metrics.csv")]
    assert rates == pytest.approx([0.05, 0.025] + [0.025] * 2 + [0.0125] * 2 + [0.00625] * 2 + [0.003125] * 2)
    assert settings.read(config=run / "config.yaml").step_size is None


def test_a_run_that_is_done_says_so_and_is_not_shortened(call, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "copy")
    code, out, _ = call("--resume", run)
    assert code == 0 and "nothing to do: all 2 epochs are done" in out
    kept = (run / "config.yaml").read_bytes()
    assert call("--resume", run, "lr=9")[0] == 0
    assert (run / "config.yaml").read_bytes() == kept  # which tells what the run was trained with
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    code, _, error = call("--resume", run, "epochs=1")
    assert code == 2 and "has begun 2 epochs already" in error and len(error.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_run_stopped_in_an_epoch_is_not_done_with_those_before(call, arguments, tmp_path, at_step):
    at_step(4, lambda: signal.raise_signal(signal.SIGINT))  # the first step of the second epoch
    assert call(*arguments)[0] == 130
    code, _, error = call("--resume", tmp_path / "run", "epochs=1")
    assert code == 2 and "has begun 2 epochs already" in error and len(error.splitlines()) == 1


def test_the_best_weights_outlive_a_kill_between_two_files(call, arguments, tmp_path):
    assert call(*arguments, "epochs=1")[0] == 0
    (tmp_path / "run" / "best.pt").unlink()
    assert call("--resume", tmp_path / "run")[0] == 0
    assert (tmp_path / "run" / "best.pt").exists()


def test_an_epoch_begun_keeps_its_images_whatever_the_epochs_become(call, arguments, tmp_path, at_step):
    at_step(5, lambda: signal.raise_signal(signal.SIGINT))  # the second step of the second epoch, of two
    assert call(*arguments, "epochs=5", "leave_out=0.4")[0] == 130
    saved = checkpoint.load(tmp_path / "run" / "last.pt")
    assert saved["step"] == 2 and len(saved["images"]) == 16
    seen = saved["losses"].nonzero().flatten().tolist()
    assert len(seen) == 21  # those left out keep theirs
    assert call("--resume", tmp_path / "run", "epochs=3")[0] == 0
    rows = folder.read_metrics(tmp_path / "run" / "metrics.csv")
    right = rows[1].train_accuracy * 16 / 100
    assert right == pytest.approx(round(right), abs=1e-3)  # the second epoch trained on 16 images


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_settings_reach_the_optimiser_the_network_and_the_loss(start, precision):
    asked = ["momentum=0.7", "nesterov=false", "weight_decay=0.25", "dropout=0.3", "label_smoothing=0.2"]
    training = start(*asked, f"precision={precision}")
    (group,) = training.optimizer.param_groups
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.7, False, 0.25)
    assert [layer.p for layer in training.network.modules() if isinstance(layer, nn.Dropout)] == [0.3]
    batch, answers, seen = next(training.test_loader.batches()), torch.randn(12, 3), []

    def network(images):
        seen.append(torch.is_autocast_enabled("cpu"))
        return answers

    _, losses = train.forward(training, network, batch)
    log = answers.log_softmax(1)
    assert torch.allclose(losses, -(0.8 * log[range(12), batch.labels] + 0.2 * log.mean(1)), atol=1e-6)
    assert seen == [precision == "bfloat16"]
    resumed = start(*asked, "weight_decay=0.5")
    resumed.load_state_dict(training.state_dict())
    assert resumed.optimizer.param_groups[0]["weight_decay"] == 0.5


def test_no_two_steps_epochs_or_ranks_draw_the_same_dropout(start, monkeypatch):
    training, seeds = start("seed=4294967295"), []
    monkeypatch.setattr(devices, "seed", lambda device, number: seeds.append(number))
    for rank, epoch, step in itertools.product(range(2), repeat=3):
        monkeypatch.setattr(devices, "rank", lambda rank=rank: rank)
        training.rows, training.step = [None] * epoch, step
        train.seed_dropout(training)
    assert len(set(seeds)) == 8 and max(seeds) < 2**63


def test_learning_rate_warms_up_and_falls(call, arguments, tmp_path, monkeypatch):
    used, step = [], torch.optim.SGD.step

    def noting(optimizer):
        used.append(optimizer.param_groups[0]["lr"])
        step(optimizer)

    monkeypatch.setattr(torch.optim.SGD, "step", noting)
    assert call(*arguments, "epochs=3", "lr=0.3", "step_size=2", "gamma=0.5", "warmup_epochs=1")[0] == 0
    assert used == pytest.approx([0.1, 0.2] + [0.3] * 4 + [0.15] * 3)
    rows = folder.read_metrics(tmp_path / "run" / "metrics.csv")
    assert [row.lr for row in rows] == pytest.approx([0.3, 0.3, 0.15])


def test_first_epochs_see_small_images(call, arguments, monkeypatch):
    sides, forward = [], train.forward

    def noting(training, network, batch):
        sides.append(batch.images.shape[-1])
        return forward(training, network, batch)

    monkeypatch.setattr(train, "forward", noting)
    assert call(*arguments, "epochs=3", "small_epochs=2", "small_size=16")[0] == 0
    assert sides == [16, 16, 16, 32] * 2 + [32] * 4  # three training batches and a test batch an epoch


def test_averaged_weights_are_the_moving_average_of_the_weights(start):
    training = start("average=0.35", "small_epochs=0", "batch_size=4")
    expected, weight, steps = training.network[2].weight.detach().clone(), training.network[2].weight, []

    @torch.no_grad()
    def after_batch(training):
        steps.append(training.step)
        decay = min(0.35, len(steps) / (9 + len(steps)))
        expected.copy_(decay * expected + (1 - decay) * weight)
        averaged = training.average.network[2].weight
        assert torch.allclose(averaged, expected, atol=1e-6) and not torch.allclose(
            averaged, weight, atol=1e-4
        )

    train.train_epoch(training, after_batch)
    assert steps == [1, 2, 3, 4, 5, 6]


def test_without_an_average_the_weights_themselves_are_tested(start, epochs):
    training = start("average=0")
    epochs(training)
    for name, value in training.network.state_dict().items():
        if value.is_floating_point():  # not BatchNorm's count of batches, which nothing uses
            assert torch.equal(value, training.average.network.state_dict()[name]), name


@pytest.mark.parametrize(
    "setting",
    [
        "network=s8",
        "dataset=synthetic",
        "batch_size=16",
        "seed=5",
        "out=elsewhere",
        "whiten=false",
        "weights=x",
        "teachers=x",
    ],
)
def test_resume_refuses_to_become_another_run(call, finished, setting):
    before = (finished / "config.yaml").read_bytes()
    code, _, error = call("--resume", finished, setting)
    assert code == 2 and setting.split("=")[0] in error and len(error.splitlines()) == 1
    assert (finished / "config.yaml").read_bytes() == before


# What a user may type, and words of the answer. All but data is checked before CIFAR-10 would be fetched.
BAD = {
    "unknown setting": ("epoch=3", "did you mean epochs"),
    "wrong type": ("epochs=ten", "whole number"),
    "unknown network": ("network=vgg", "fast, "),
    "unknown option": ("--epochs 3", "--help"),
    "two commands": ("--resume {finished} --evaluate {finished}", "not allowed with argument --resume"),
    "no config": ("--config {bad}/none.yaml", "cannot be read"),
    "list config": ("--config {bad}/list.yaml", "line 1"),
    "torn config": ("--config {bad}/torn.yaml", "line 3"),
    "no run": ("--resume {bad}/nowhere", "no such run folder"),
    "no run to evaluate": ("--evaluate {bad}/nowhere", "no such run folder"),
    "empty run": ("--resume {bad}/empty", "config.yaml"),
    "unsaved run": ("--resume {bad}/unsaved", "last.pt: there is no such file"),
    "damaged run": ("--resume {bad}/damaged", "damaged"),
    "old format": ("--resume {bad}/old", "format 99"),
    "other classes": ("--resume {bad}/foreign", "2 classes"),
    "hostile file": ("--resume {bad}/hostile", "last.pt"),
    "taken folder": ("out={finished}", "already holds a run"),
    "a file as out": ("out={bad}/list.yaml", "is a file"),
    "below a file": ("out={bad}/list.yaml/run", "is a file"),
    "an address": ("--config https://example.org/my.yaml", "give the path"),
    "a folder as checkpoint": ("--resume {bad}/heap", "last.pt: holds no last.pt"),
    "a file as run": ("--resume {finished}/last.pt", "is a file; give the run folder, "),
    "no path": ("--resume= epochs=2", "empty path"),
    "a folder as weights": ("weights={bad}", "holds no last.pt or weights.pt"),
    "teachers that are not there": (
        "teachers={bad}/no.pt out={bad}/new",
        "no.pt: there is no such file",
    ),
    "teachers of nobody": (
        "teachers=,~no-such-user/no.pt out={bad}/new",
        "no.pt: there is no such file",
    ),
    "weights of nobody": ("weights=~no-such-user/no.pt", "no.pt: there is no such file"),
    "teachers of other classes": (
        "teachers={bad}/foreign/last.pt dataset=folder data_dir={pictures} out={bad}/new",
        "other classes",
    ),
    "an address as out": ("out=http://x/y", "is an address; give the path"),
    "too many epochs": ("epochs=1" + 20 * "0", "epochs"),
    "no data": ("dataset=folder data_dir={bad}/none out={bad}/new", "train"),
}


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile-code-ran",)


@pytest.fixture(scope="session")
def bad(tmp_path_factory, finished):
    """A folder of files and runs that cannot be used."""
    root = tmp_path_factory.mktemp("bad")
    (root / "list.yaml").write_text("- lr\n")
    (root / "torn.yaml").write_text("lr: 1\nepochs: {\n")
    (root / "empty").mkdir()
    for name in ("unsaved", "damaged", "old", "foreign", "hostile"):
        shutil.copytree(finished, root / name)
    (root / "unsaved" / "last.pt").unlink()
    shutil.copytree(finished, root / "heap", ignore=shutil.ignore_patterns("last.pt"))
    (root / "heap" / "last.pt").mkdir()
    raw = (finished / "last.pt").read_bytes()
    (root / "damaged" / "last.pt").write_bytes(raw[: len(raw) // 2])
    saved = torch.load(finished / "last.pt", weights_only=True)
    torch.save(saved | {"format": 99}, root / "old" / "last.pt")
    torch.save(saved | {"classes": ["cat", "dog"]}, root / "foreign" / "last.pt")
    torch.save(saved | {"rows": Hostile()}, root / "hostile" / "last.pt")
    return root


@pytest.mark.parametrize("what", BAD)
def test_bad_input_gets_one_line_and_harms_nothing(
    call, bad, what, finished, pictures, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    typed, words = BAD[what]
    folders = {"bad": bad, "finished": finished, "pictures": pictures}
    code, _, error = call(*(word.format(**folders) for word in typed.split()))
    assert code == 2 and words in error and len(error.splitlines()) == 1, error
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before
    assert list(tmp_path.iterdir()) == []


def test_no_file_of_a_stranger_runs_code(bad, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pickle.UnpicklingError):
        model.load(bad / "hostile" / "last.pt")
    copy = shutil.copytree(pictures, tmp_path / "copy")
    torch.save({"format": Hostile()}, copy / "decoded.pt")
    data.load("folder", copy)
    assert not Path("hostile-code-ran").exists()


def test_diverging_loss_stops_the_run_and_keeps_the_checkpoint(call, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "copy")
    code, _, error = call("--resume", run, "epochs=9", "lr=1e30", "gamma=1")
    assert code == 2 and len(error.splitlines()) == 1
    assert re.search(r"no longer finite in epoch 3, step \d, at learning rate 1e\+30", error)
    assert (run / "last.pt").read_bytes() == (finished / "last.pt").read_bytes()


def test_full_disk_ends_the_run_and_keeps_the_checkpoint(
    call, arguments, finished, tmp_path, monkeypatch, at_step
):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        at_step(5, lambda: patch.setattr(os, "fsync", full), patch)
        code, _, error = call(*arguments)
    run = tmp_path / "run"
    assert code == 1 and "No space left" in error and str(run) in error and len(error.splitlines()) == 1
    assert len(checkpoint.load(run / "last.pt")["rows"]) == 1 and not list(run.glob("*.tmp"))
    assert call("--resume", run)[0] == 0
    assert same_run(run, finished)


def test_compiled_network_leaves_a_plain_checkpoint(call, arguments, tmp_path, finished, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)  # the trial before
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compiled.append(self))
    assert call(*arguments, "compile=on")[0] == 0
    assert len(compiled) == 1
    saved = checkpoint.load(tmp_path / "run" / "last.pt")
    assert saved["weights"].keys() == model.build("fast", 3).state_dict().keys()


def test_metrics_are_means_over_images_not_batches(start, pictures):
    training = start("label_smoothing=0", "precision=float32")
    info, _, test = data.load("folder", pictures)
    training.test_loader = data.Loader(test, info, 5)  # batches of 5, 5 and 2
    loss, accuracy = train.test_epoch(training, lambda _: None)
    batch = next(data.Loader(test, info, 12).batches())
    with torch.no_grad():
        logits = training.network.eval()(batch.images)
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, batch.labels).item(), rel=1e-4)
    assert accuracy == pytest.approx(100 * (logits.argmax(1) == batch.labels).double().mean().item())


def test_held_out_images_are_scored_and_named(call, arguments, tmp_path):
    code, out, error = call(*arguments, "holdout=6", "batch_size=5")
    assert (code, error) == (0, "")
    for words in ("15 training and 6 held-out images", "held-out loss", "held-out accuracy"):
        assert words in out
    text = (tmp_path / "run" / "metrics.csv").read_text()
    assert text.startswith("epoch,lr,train_loss,train_accuracy,heldout_loss,heldout_accuracy,")
    out = call("--evaluate", tmp_path / "run")[1]
    assert "held-out accuracy" in out and "may have been trained on" not in out
    assert "may have been trained on some" in call("--evaluate", tmp_path / "run", "holdout=3")[1]
    assert "test accuracy" in call("--evaluate", tmp_path / "run", "holdout=0")[1]
    assert call("--resume", tmp_path / "run", "holdout=3")[0] == 2


def test_a_note_tells_that_held_out_images_may_be_known(call, arguments, finished, tmp_path):
    for number, (held_out, told, known) in enumerate(((6, 1, finished), (0, 0, finished / "best.pt"))):
        run = f"out={tmp_path / str(number)}"
        code, out, _ = call(
            *arguments, "epochs=1", "batch_size=5", f"weights={known}", f"holdout={held_out}", run
        )
        assert code == 0 and out.count("note: weights and teachers must have") == told


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_a_run_killed_twice_is_the_run_that_was_not(arguments, tmp_path):
    asked = [*arguments[:-1], "epochs=30", "checkpoint_minutes=0.001"]
    sent, _, equal = soak(asked, tmp_path, 2, random.Random(0), wait=0)  # while it writes its files
    assert equal and sorted(sent) == ["SIGHUP", "SIGKILL"]


def test_ctrl_c_after_the_last_epoch_changes_nothing(call, arguments, tmp_path, finished, monkeypatch):
    epoch = report.epoch

    def interrupted(settings, info, rows, seconds):
        epoch(settings, info, rows, seconds)
        if len(rows) == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(report, "epoch", interrupted)
    code, out, error = call(*arguments)
    assert (code, error) == (0, "") and "evaluate with" in out
    assert same_run(tmp_path / "run", finished) and (tmp_path / "run" / "curves.png").exists()


def test_ctrl_c_before_the_training_leaves_nothing_behind(call, arguments, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "load_data", interrupted)
    assert call(*arguments) == (130, "", "interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_the_command_that_goes_on_can_be_copied(call, arguments, tmp_path, at_step):
    run = tmp_path / "my runs" / "a b"
    at_step(2, lambda: signal.raise_signal(signal.SIGINT))
    _, _, error = call(*arguments, f"out={run}")
    quoted = f'"{run}"' if os.name == "nt" else f"'{run}'"
    assert error.endswith(f"python train.py --resume {quoted}\n")


def test_a_training_whose_reader_is_gone_trains_on(arguments, tmp_path, finished, monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with monkeypatch.context() as patch, open(writer, "w") as closed:
        patch.setattr(sys, "stdout", closed)
        assert train.main(arguments) == 0
    assert same_run(tmp_path / "run", finished)
    error = capsys.readouterr().err
    assert "cannot be written any more" in error and len(error.splitlines()) == 1


def test_a_training_without_streams_trains(arguments, tmp_path, finished, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        patch.setattr(sys, "stderr", None)
        assert train.main(arguments) == 0
    assert same_run(tmp_path / "run", finished)


def test_where_torch_cannot_compile_a_line_says_so(call, arguments, tmp_path, finished, monkeypatch):
    def no_compiler(*_, **__):
        raise RuntimeError("\nno compiler\nand more")

    monkeypatch.setattr(torch, "compile", no_compiler)
    code, out, error = call(*arguments, "compile=on")
    assert (code, error) == (0, "")
    assert out.startswith(
        "note: torch.compile does not work here (no compiler); training goes on without it\n"
    )
    assert same_run(tmp_path / "run", finished)


@pytest.mark.parametrize("words", ["torch", "cuda", "python"])
def test_too_little_memory_is_one_line(call, arguments, at_step, words):
    def allocate():
        if words == "torch":
            torch.empty(10**15)  # the real message
        raise MemoryError if words == "python" else torch.OutOfMemoryError("CUDA out of memory. Tried ...")

    at_step(2, allocate)
    code, _, error = call(*arguments)
    assert code == 2 and "lower batch_size" in error and len(error.splitlines()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name is text")
def test_classes_and_folders_whose_names_are_no_text(call, arguments, pictures, tmp_path):
    root = tmp_path / os.fsdecode(b"caf\xe9 $x_1$")
    shutil.copytree(pictures, root, ignore=shutil.ignore_patterns("decoded.pt"))
    for part in ("train", "test"):
        (root / part / "owl").rename(root / part / os.fsdecode(b"\xff\xfe"))
    code, _, error = call(*arguments, f"data_dir={root}")
    assert (code, error) == (0, "") and (tmp_path / "run" / "samples.png").exists()
    assert call("--evaluate", tmp_path / "run")[0] == 0 and (tmp_path / "run" / "confusion.png").exists()
    assert call("--resume", tmp_path / "run", "epochs=3")[0] == 0


def test_many_classes_are_told_which_networks_can_have_them(call, arguments, monkeypatch):
    load = train.data.load

    def hundred(*them):
        dataset = load(*them)
        return dataset._replace(info=dataset.info._replace(classes=[str(number) for number in range(100)]))

    monkeypatch.setattr(train.data, "load", hundred)
    code, _, error = call(*arguments)
    assert (
        code == 2
        and "fast has 204,352 parameters with 100 classes" in error
        and "choose one of dense-5x5" in error
    )
    assert len(error.splitlines()) == 1


def test_a_network_for_one_size_of_images_is_told_what_to_set(call, arguments, tmp_path, monkeypatch):
    def network(classes, dropout):
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(3600, classes)
        )

    monkeypatch.setitem(model.NETWORKS, "mine", network)
    asked = [*arguments, "network=mine", "whiten=false"]
    code, _, error = call(*asked)
    assert code == 2 and "set small_epochs=0" in error and len(error.splitlines()) == 1
    assert call(*asked, "small_epochs=0")[0] == 0
    taught = [*arguments, f"teachers={tmp_path / 'run' / 'last.pt'}", f"out={tmp_path / 'taught'}"]
    code, _, error = call(*taught)
    assert code == 2 and "set small_epochs=0" in error and len(error.splitlines()) == 1
    assert call(*taught, "small_epochs=0")[0] == 0


def test_a_run_made_before_a_setting_existed_goes_on_without_it(call, arguments, tmp_path, at_step):
    assert call(*arguments, "epochs=5", "leave_out=0", f"out={tmp_path / 'whole'}")[0] == 0
    at_step(4, lambda: signal.raise_signal(signal.SIGINT))
    assert call(*arguments, "epochs=5", "leave_out=0")[0] == 130
    config = tmp_path / "run" / "config.yaml"
    lines = [line for line in config.read_text().splitlines() if "leave_out" not in line]
    lines = ["compile: auto" if line.startswith("compile") else line for line in lines]
    gone = ["plain_epochs: 0", "mixup: 0.0", "rotate: 0.0", "colour: 0.0", "sync_batchnorm: false"]
    config.write_text("\n".join(lines + gone))
    assert call("--resume", tmp_path / "run")[0] == 0
    assert same_run(tmp_path / "run", tmp_path / "whole")
    config.write_text(config.read_text() + "plain_epochs: 3\n")
    code, _, error = call("--resume", tmp_path / "run")
    assert code == 2 and "plain_epochs is gone" in error and len(error.splitlines()) == 1
    assert call("--evaluate", tmp_path / "run")[0] == 0


@pytest.mark.parametrize(
    "layers, settings, words",
    [
        (
            [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(9)],
            "whiten=false",
            "on images of 32 pixels (running_mean",
        ),
        ([nn.Flatten(), nn.Linear(3072, 3)], "small_epochs=0", "set whiten=false"),
        ([nn.Conv2d(3, 3, 3, groups=3), model.AdaptiveAvgPool2d()], "small_epochs=0", "set whiten=false"),
        ([nn.Conv2d(3, 3, 3)], "", "on images of 32 pixels (an image gives 1×2700 values, not 1×3)"),
        ([nn.Conv2d(3, 5, 3), model.AdaptiveAvgPool2d()], "", "gives 1×5 values, not 1×3"),
    ],
)
def test_what_is_wrong_with_a_network_of_ones_own_is_said(
    call, arguments, monkeypatch, layers, settings, words
):
    monkeypatch.setitem(model.NETWORKS, "mine", lambda classes, dropout: model.Network(*layers))
    code, _, error = call(*arguments, "network=mine", *settings.split())
    assert code == 2 and words in error and len(error.splitlines()) == 1


def test_a_network_that_torchsummary_does_not_know_is_trained(call, arguments, monkeypatch):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.look = nn.MultiheadAttention(3, 1, batch_first=True)

        def forward(self, images):
            pixels = images.flatten(2).transpose(1, 2)
            return self.look(pixels, pixels, pixels, need_weights=False)[0].mean(1)

    monkeypatch.setitem(model.NETWORKS, "mine", lambda classes, dropout: Attention())
    code, out, _ = call(*arguments, "network=mine", "whiten=false", "small_epochs=0", "epochs=1")
    assert code == 0 and "note: torchsummary has no table" in out and "epoch   1/1" in out


@pytest.mark.parametrize("name", ["last.pt", "config.yaml"])
def test_a_run_that_could_not_begin_can_be_begun_again(call, arguments, tmp_path, monkeypatch, name):
    def full(path, content, retries=0, write=folder.write_whole):
        if path.name == name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, content, retries)

    with monkeypatch.context() as patch:
        patch.setattr(folder, "write_whole", full)
        code, _, error = call(*arguments)
    assert code == 1 and name in error and not (tmp_path / "run").exists()
    assert call(*arguments)[0] == 0


def test_ctrl_c_while_the_run_folder_is_made_leaves_a_run_that_goes_on(
    call, arguments, finished, tmp_path, monkeypatch
):
    def interrupted(path, content, retries=0, write=folder.write_whole):
        write(path, content, retries)
        if path.name == "last.pt" and not (path.parent / "config.yaml").exists():
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(folder, "write_whole", interrupted)
    code, _, error = call(*arguments)
    assert code == 130 and "stopped and saved" in error
    assert call("--resume", tmp_path / "run")[0] == 0 and same_run(tmp_path / "run", finished)


def test_files_that_are_no_run_are_kept(call, arguments, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("lr: 0.1")
    code, _, error = call(*arguments)
    assert code == 2 and "already holds a config.yaml; choose another out=" in error
    assert (tmp_path / "run" / "config.yaml").read_text() == "lr: 0.1"


def test_a_run_is_not_written_among_the_classes(call, pictures, tmp_path, monkeypatch):
    shutil.copytree(pictures, tmp_path / "split")
    shutil.copytree(pictures / "train", tmp_path / "flat")
    monkeypatch.chdir(tmp_path / "flat")
    for out, data_dir in (("", "."), ("mine", tmp_path / "flat"), ("../split/test/mine", "../split")):
        code, _, error = call("dataset=folder", f"data_dir={data_dir}", "holdout=6", "epochs=1", f"out={out}")
        assert code == 2 and "would be a class; give a folder elsewhere" in error
    for there in (".", "../split/test"):
        assert sorted(path.name for path in Path(there).iterdir()) == ["cat", "dog", "owl"]


@pytest.mark.parametrize("step", [2, 5])
def test_a_checkpoint_of_the_first_format_goes_on_exactly(
    call, arguments, tmp_path, at_step, step, monkeypatch
):
    before, begin_epoch = [], train.Training.begin_epoch
    note = lambda training: before.append(training.losses.clone()) or begin_epoch(training)  # noqa: E731
    monkeypatch.setattr(train.Training, "begin_epoch", note)
    asked = [*arguments, "epochs=5", "leave_out=0.4", "batch_size=7"]
    assert call(*asked, f"out={tmp_path / 'whole'}")[0] == 0
    at_step(step, lambda: signal.raise_signal(signal.SIGINT))
    assert call(*asked)[0] == 130
    path = tmp_path / "run" / "last.pt"
    saved = torch.load(path, weights_only=True)
    new = torch.zeros(21)
    new[saved["images"]] = saved["losses"][saved["images"]]  # it kept apart what the epoch under way had seen
    first = {"format": 1, "losses": before[-1], "new_losses": new, "totals": saved["meter"]}
    for name in ("images", "meter", "lr_since", "train_digest", "test_digest", "train_images"):
        del saved[name]
    torch.save(saved | first, path)
    assert call("--resume", tmp_path / "run")[0] == 0
    assert same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_ctrl_c_while_torch_loads_is_no_traceback(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("import time\nprint('loading', flush=True)\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # found before the real one
    process = launch("--help")
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (-signal.SIGINT, "")
