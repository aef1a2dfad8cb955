"""What a trained network sees in pictures of any kind and size: the three likeliest classes of each.

    python -m tools.predict cat.jpg dog.png
    python -m tools.predict --run runs/NAME --json *.jpg

A folder stands for the files in it. The weights are those shipped with this repository, unless --run names
another run, or a file such as runs/NAME/best.pt.
"""

import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for python tools/predict.py
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while torch loads ends without a traceback

import torch

import data
import model
from harness import checkpoint
from harness.errors import Parser, UserError, one_line_errors
from tools import paths

SHIPPED = Path(__file__).resolve().parent.parent / "results" / "taught" / "weights.pt"


def main(argv: list[str] | None = None) -> int:
    """Print a line a picture. Exit code 2 if one could not be read, after all others were answered."""
    parser = Parser(__doc__)
    parser.add_argument("pictures", nargs="*", metavar="IMAGE")
    parser.add_argument("--run", metavar="RUN", type=Path, help="use this run's last weights, or this file")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    parser.add_argument(
        "--views",
        type=int,
        choices=(1, 2, 6),
        default=1,
        help="look at each picture once, also mirrored (2), or both also shifted by a pixel (6)",
    )
    with one_line_errors(model.NetworkError) as outcome:
        arguments = parser.parse_intermixed_args(argv)
        if not arguments.pictures:
            raise UserError("name some pictures: python -m tools.predict cat.jpg dog.png")
        network = model.ready(checkpoint.load(arguments.run or SHIPPED))
        for picture in files(arguments.pictures):
            try:
                if os.path.isdir(picture):
                    raise data.DataError(f"{picture}: is a folder without a file that can be read")
                answers = classify(network, data.decode(picture), arguments.views)
            except data.DataError as error:
                print(f"error: {error}", file=sys.stderr)
                outcome.code = 2
                continue
            print(as_json(picture, answers) if arguments.json else as_text(picture, answers))
    return outcome.code


def files(words: Iterable[str]) -> Iterator[Path]:
    """The files named on the command line, and those in folders named there, but for a system's own.

    A folder without any stands for itself.
    """
    for path in paths(words):
        inside: list[Path] = []
        with suppress(OSError):  # no folder, or one that may not be read
            inside = sorted(path.iterdir())
        wanted = [file for file in inside if os.path.isfile(file) and not data.ignored(file.name)]
        yield from wanted or [path]


@torch.no_grad()
def classify(network: torch.nn.Module, image: torch.Tensor, views: int) -> list[tuple[str, float]]:
    """The likeliest classes of a picture (3×32×32, uint8), up to three, with their probabilities."""
    probabilities = model.logits(network, image[None] / 255, views)[0].softmax(0)
    top = probabilities.topk(min(3, len(network.classes)))
    return [
        (network.classes[label], share) for share, label in zip(top.values.tolist(), top.indices.tolist())
    ]


def as_text(picture: Path, answers: list[tuple[str, float]]) -> str:
    """Such as `cat.jpg: cat 97.1%, dog 1.3%, deer 0.4%`."""
    return f"{picture}: " + ", ".join(f"{name} {100 * share:.1f}%" for name, share in answers)


def as_json(picture: Path, answers: list[tuple[str, float]]) -> str:
    """One JSON object, probabilities from 0 to 1."""
    classes = [{"name": name, "probability": share} for name, share in answers]
    return json.dumps({"file": str(picture), "classes": classes})


if __name__ == "__main__":
    sys.exit(main())
