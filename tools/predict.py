"""What a trained network sees in pictures of any kind and size: the three likeliest classes of each.

    python -m tools.predict cat.jpg dog.png
    python -m tools.predict --run runs/NAME --json *.jpg

The weights are those shipped with this repository, unless --run names another run.
"""

import json
import sys
from pathlib import Path

import torch

import data
import model
from harness import checkpoint
from harness.errors import Parser, one_line_errors

SHIPPED = Path(__file__).resolve().parent.parent / "results" / "accurate" / "weights.pt"


def main(argv: list[str] | None = None) -> int:
    """Print a line a picture. Exit code 2 if one could not be read, after all others were answered."""
    parser = Parser(__doc__)
    parser.add_argument("pictures", nargs="+", metavar="IMAGE")
    parser.add_argument("--run", metavar="RUN", help="use this run's last weights")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    parser.add_argument(
        "--views",
        type=int,
        choices=(1, 2, 6),
        default=1,
        help="look at each picture once, also mirrored (2), or both also shifted by a pixel (6)",
    )
    with one_line_errors(model.NetworkError) as outcome:
        arguments = parser.parse_args(argv)
        path = Path(arguments.run, "last.pt") if arguments.run else SHIPPED
        network = model.ready(checkpoint.load(path))
        for picture in arguments.pictures:
            with one_line_errors(data.DataError) as of_picture:
                answers = classify(network, data.decode(picture), arguments.views)
                print(as_json(picture, answers) if arguments.json else as_text(picture, answers))
            outcome.code = outcome.code or of_picture.code
    return outcome.code


@torch.no_grad()
def classify(network: torch.nn.Module, image: torch.Tensor, views: int) -> list[tuple[str, float]]:
    """The likeliest classes of a picture (3×32×32, uint8), up to three, with their probabilities."""
    probabilities = model.logits(network, image[None] / 255, views)[0].softmax(0)
    top = probabilities.topk(min(3, len(network.classes)))
    return [
        (network.classes[label], share) for share, label in zip(top.values.tolist(), top.indices.tolist())
    ]


def as_text(picture: str, answers: list[tuple[str, float]]) -> str:
    """Such as `cat.jpg: cat 97.1%, dog 1.3%, deer 0.4%`."""
    return f"{picture}: " + ", ".join(f"{name} {100 * share:.1f}%" for name, share in answers)


def as_json(picture: str, answers: list[tuple[str, float]]) -> str:
    """One JSON object, probabilities from 0 to 1."""
    classes = [{"name": name, "probability": share} for name, share in answers]
    return json.dumps({"file": picture, "classes": classes})


if __name__ == "__main__":
    sys.exit(main())
