import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image

import train
from harness import settings

hypothesis.settings.register_profile("no deadline", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("no deadline")
torch.set_num_threads(1)  # tiny batches gain nothing from more, and two test runs at once do not fight

CLASSES = ["cat", "dog", "owl"]
FILES = ["best.pt", "config.yaml", "curves.png", "last.pt", "metrics.csv", "samples.png"]  # of a finished run


def settings_of_run(pictures, out):
    """Command-line settings of a run of two epochs with three steps each."""
    small = ["dataset=folder", "epochs=2", "batch_size=8", "lr=0.05", "dropout=0.1", "device=cpu"]
    return [f"data_dir={pictures}", *small, f"out={out}"]


@pytest.fixture(autouse=True)
def tiny_numbers():
    """A training takes them for 0 from then on, and hypothesis refuses to work without them."""
    torch.manual_seed(0)  # the same random numbers whatever ran before
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A data folder of 3 classes with 7 training and 4 test pictures each, every picture different."""
    root = tmp_path_factory.mktemp("data") / "pictures"
    random = np.random.default_rng(0)
    for part, count in (("train", 7), ("test", 4)):
        for shade, name in enumerate(CLASSES):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 120, (32, 32, 3)) + 60 * shade
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.fixture
def arguments(pictures, tmp_path):
    """Settings of such a run in tmp_path/run."""
    return settings_of_run(pictures, tmp_path / "run")


@pytest.fixture
def call(capsys):
    """Run train.main and return (exit code, stdout, stderr)."""

    def run(*argv):
        capsys.readouterr()
        code = train.main([str(argument) for argument in argv])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def finished(pictures, tmp_path_factory):
    """The folder of an undisturbed run with the settings of `arguments`."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert train.main(settings_of_run(pictures, folder)) == 0
    return folder


@pytest.fixture
def start(pictures):
    """Make a Training as a run would: start("lr=0.1", ...)."""

    def make(*pairs):
        asked = settings.read([*settings_of_run(pictures, "unused"), *pairs])
        return train.Training(asked, train.load_data(asked), torch.device("cpu"))

    return make


@pytest.fixture
def at_step(monkeypatch):
    """Call `action` in the `number`th step of training, counted over all epochs: at_step(number, action)."""

    def patch(number, action, patcher=monkeypatch):
        taken, seed_dropout = iter(range(1, 1000)), train.seed_dropout

        def counting(training):
            if next(taken) == number:
                action()
            seed_dropout(training)

        patcher.setattr(train, "seed_dropout", counting)

    return patch


@pytest.fixture
def epochs():
    """Train so many epochs of a Training without a run folder: epochs(training, count=1)."""

    def run(training, count=1):
        for _ in range(count):
            scores = [part(training, lambda _: None) for part in (train.train_epoch, train.test_epoch)]
            training.end_epoch(*scores)

    return run
