import numpy as np
import pytest
import torch
from PIL import Image

import train

torch.set_num_threads(1)  # tiny batches gain nothing from more, and two test runs at once do not fight

CLASSES = ["cat", "dog", "owl"]


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
    """Command-line settings of a run of two epochs with three steps each in tmp_path/run."""
    return [f"data_dir={pictures}", "dataset=folder", "epochs=2", "batch_size=8", "lr=0.05", "dropout=0.1", "device=cpu", f"out={tmp_path / 'run'}"]


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
    assert train.main([f"data_dir={pictures}", "dataset=folder", "epochs=2", "batch_size=8", "lr=0.05", "dropout=0.1", "device=cpu", f"out={folder}"]) == 0
    return folder
