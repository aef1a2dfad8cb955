"""Small scripts for after a training, run as `python -m tools.NAME`."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path


def paths(words: Iterable[str]) -> list[Path]:
    """The paths that words of a command line stand for; on Windows no shell expands `runs/*`."""
    found: list[str] = []
    for word in words:
        matching = [] if os.path.exists(word) else sorted(glob.glob(word))
        found += matching or [word]
    return [Path(name) for name in found]
