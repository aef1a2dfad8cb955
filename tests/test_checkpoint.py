import math
import pickle
import shutil

import pytest
import torch

import model
from harness import checkpoint


def test_the_best_weights_hold_what_one_needs_to_use_them_and_no_more(finished):
    use = ["classes", "format", "mean", "network", "source", "std", "test_accuracy", "torch", "weights"]
    assert sorted(torch.load(finished / "best.pt", weights_only=True)) == use


def test_a_training_starts_from_all_weights_for_the_same_classes(call, arguments, finished, tmp_path):
    still = ["lr=1e-9", "average=0", "weight_decay=0"]
    code, out, _ = call(*arguments, f"weights={finished / 'last.pt'}", *still)
    assert code == 0 and "all layers" in out
    given, kept = (checkpoint.load(run / "last.pt")["weights"] for run in (finished, tmp_path / "run"))
    for name, weight in given.items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.allclose(kept[name], weight, atol=1e-5), name


def test_a_training_keeps_its_last_layer_for_other_classes(call, start, finished, tmp_path, capsys):
    saved = torch.load(finished / "best.pt", weights_only=True)
    torch.save(saved | {"classes": ["a", "b", "c"]}, tmp_path / "others.pt")
    training = start()
    own = training.network[-1].weight.clone()
    networks = [training.network, training.average.network]
    checkpoint.start_from(networks, tmp_path / "others.pt", training.info.classes)
    assert "all but the last layer, for 3 other classes than its 3" in capsys.readouterr().out
    for network in networks:
        assert torch.equal(network[-1].weight, own)
        assert torch.equal(network[2].weight, saved["weights"]["2.weight"])


def change(path, **values):
    """Give a file of weights other values."""
    torch.save(torch.load(path, weights_only=True) | values, path)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda path, raw: path.write_bytes(raw[:5000]), "is damaged"),
        (lambda path, raw: path.write_bytes(b""), "is damaged"),
        (lambda path, raw: path.write_text("epoch,lr\n1,0.3\n"), "is damaged"),
        (lambda path, raw: path.write_bytes(pickle.dumps([1, 2], protocol=4)), "is damaged"),
        (lambda path, raw: path.unlink(), "there is no such file"),
        (lambda path, raw: torch.save({"format": 1, "listing": ""}, path), "no checkpoint of this program"),
        (lambda path, raw: torch.save([1, 2], path), "has format None"),
        (lambda path, raw: change(path, classes="cat, dog, owl"), "is damaged"),
        (lambda path, raw: change(path, weights=[1, 2]), "is damaged"),
        (lambda path, raw: change(path, weights={"0.weight": "1"}), "is damaged"),
        (lambda path, raw: change(path, network=7), "is damaged"),
        (lambda path, raw: change(path, mean=0.5), "is damaged"),
        (lambda path, raw: change(path, std=["a", "b", "c"]), "is damaged"),
        (lambda path, raw: change(path, std=[0.0, 0.1, 0.1]), "is damaged"),
        (lambda path, raw: change(path, mean=[0.1, math.nan, 0.1]), "is damaged"),
        (lambda path, raw: change(path, classes=[1, 2, 3]), "is damaged"),
        (lambda path, raw: change(path, weights={"0.weight": torch.tensor([1, math.nan])}), "is damaged"),
    ],
)
def test_bad_weights_are_refused_in_one_line(call, arguments, finished, tmp_path, spoil, words):
    path = tmp_path / "weights.pt"
    shutil.copy(finished / "best.pt", path)
    spoil(path, path.read_bytes())
    code, _, error = call(*arguments, f"weights={path}")
    assert code == 2 and str(path) in error and words in error and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_weights_of_other_layers_are_refused(call, arguments, finished, tmp_path):
    saved = torch.load(finished / "best.pt", weights_only=True)
    torch.save(saved | {"weights": model.build("s8", 3).state_dict()}, tmp_path / "old.pt")
    code, _, error = call(*arguments, f"weights={tmp_path / 'old.pt'}")
    assert code == 2 and "other layers" in error and len(error.splitlines()) == 1


def test_weights_alone_cannot_be_resumed(call, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "copy")
    shutil.copy(run / "best.pt", run / "last.pt")
    code, _, error = call("--resume", run)
    assert code == 2 and "weights=" in error and len(error.splitlines()) == 1


def test_a_run_with_weights_resumes_without_their_file(call, arguments, finished, tmp_path):
    path = tmp_path / "weights.pt"
    shutil.copy(finished / "best.pt", path)
    assert call(*arguments, f"weights={path}")[0] == 0
    path.unlink()
    assert call("--resume", tmp_path / "run", "epochs=3")[0] == 0
    assert call("--evaluate", tmp_path / "run")[0] == 0


def swap(one, other):
    """Rename two files so that each has the other's name."""
    one.rename(one.with_name("aside"))
    other.rename(one)
    one.with_name("aside").rename(other)


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda root: (root / "train" / "dog" / "3.png").unlink(),
            "there were 21 training images, now there are 20",
        ),
        (
            lambda root: (root / "test" / "dog" / "3.png").unlink(),
            "there were 12 test images, now there are 11",
        ),
        (
            lambda root: swap(root / "train" / "cat" / "0.png", root / "train" / "owl" / "0.png"),
            "some of the 21 training images are others, changed or renamed",
        ),
        (
            lambda root: (root / "test" / "cat" / "0.png").rename(root / "test" / "cat" / "9.png"),
            "some of the 12 test images are others, changed or renamed",
        ),
        (
            lambda root: [(root / part / "cat").rename(root / part / "zebu") for part in ("train", "test")],
            "zebu",
        ),
    ],
)
def test_a_run_is_not_resumed_on_other_data(call, pictures, finished, tmp_path, change, words):
    run = shutil.copytree(finished, tmp_path / "run")
    data = shutil.copytree(pictures, tmp_path / "data", ignore=shutil.ignore_patterns("decoded.pt"))
    assert call("--resume", run, "epochs=3", f"data_dir={data}")[0] == 0  # the same pictures, elsewhere
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    change(data)
    code, _, error = call("--resume", run, "epochs=4")
    assert code == 2 and words in error and len(error.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.name != "curves.png"} == {
        name: content for name, content in before.items() if name != "curves.png"
    }
