"""What a trained network sees in pictures of any kind and size: the three likeliest classes, one line a picture.

    python -m tools.predict cat.jpg dog.png
    python -m tools.predict --run runs/NAME --json *.jpg
"""

import argparse
import json
import sys
from pathlib import Path

import torch

import data
import files
import model

SHIPPED = Path(__file__).resolve().parent.parent / "results" / "accurate" / "weights.pt"


def main(argv=None):
    """Print a line a picture; exit code 2 if one could not be read, after all others were answered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", metavar="IMAGE")
    parser.add_argument("--run", metavar="RUN", help="use this run's last weights instead of the shipped ones of `accurate`")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    arguments = parser.parse_args(argv)
    path = Path(arguments.run, "last.pt") if arguments.run else SHIPPED
    try:
        files.load(path)
    except files.RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    network, code = model.load(path), 0
    for picture in arguments.pictures:
        try:
            image = data.decode(picture)
        except data.DataError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 2
            continue
        with torch.no_grad():
            top = network(image[None] / 255)[0].softmax(0).topk(min(3, len(network.classes)))
        answers = [(network.classes[label], probability) for probability, label in zip(top.values.tolist(), top.indices.tolist())]
        if arguments.json:
            print(json.dumps({"file": picture, "classes": [{"name": name, "probability": probability} for name, probability in answers]}))
        else:
            print(f"{picture}: " + ", ".join(f"{name} {100 * probability:.1f}%" for name, probability in answers))
    return code


if __name__ == "__main__":
    sys.exit(main())
