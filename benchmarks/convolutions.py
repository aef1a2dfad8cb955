"""What each kind of convolution buys: the variants of `s8`, for as many epochs and as many seconds.

    python -m benchmarks.convolutions --epochs 3 --seconds 600 dataset=folder data_dir=data/pictures

Each variant trains for the epochs, then anew for the number of them that should come nearest to the
seconds, going by what the first run took (the table says what it came to). The learning rate falls over
just that many. All have the settings of recipes/s8.yaml, on images of full size. Called again with the
same --out, it goes on where it was stopped. Leaves table.md, accuracy.png and the run folders there.
"""

import argparse
import sys
from pathlib import Path

import data
import model
import train
from harness import folder, pictures
from harness import settings as configuration
from harness.errors import one_line_errors
from harness.metrics import Row

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "s8.yaml"
COLUMNS = ["network", "parameters", "multiply-adds", "receptive field", "images/s"]


def main(argv: list[str] | None = None) -> int:
    """Train, print and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="*", metavar="name=value")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("runs/convolutions"))
    arguments = parser.parse_intermixed_args(argv)
    pairs, out, seconds = [*arguments.settings, "small_epochs=0"], arguments.out, arguments.seconds
    with one_line_errors(data.DataError) as outcome:
        settings = configuration.read(pairs)
        about = data.load(settings.dataset, settings.data_dir).about
        timed = {}
        heads = [
            f"accuracy after {arguments.epochs} epochs",
            f"accuracy in {seconds} s",
            "epochs in them",
            "they took",
        ]
        lines = [f"| {' | '.join([*COLUMNS, *heads])} |", "|---" * 9 + "|"]
        for name in variants():
            equal = trained(out, name, pairs, arguments.epochs)
            rows = trained(out, name, pairs, max(1, round(seconds * len(equal) / spent(equal))))
            lines.append(line(name, equal, rows, about.train_images))
            timed[f"{name} {rows[-1].test_accuracy:.1f}%"] = rows
        print("\n".join(lines))
        folder.write_whole(out / "table.md", "\n".join([*lines, ""]).encode())
        title = f"as many epochs as come nearest to {seconds} seconds, {about.source}"
        folder.write_picture(out / "accuracy.png", pictures.over_seconds(timed, title))
    return outcome.code


def variants() -> list[str]:
    """The networks of the study."""
    return [name for name in model.NETWORKS if name.startswith("s8")]


def trained(out: Path, name: str, pairs: list[str], epochs: int) -> list[Row]:
    """A variant's run of that many epochs in the folder `out`, gone on with if need be. Exits if it fails."""
    run = out / f"{name}-{epochs}"
    new = ["--config", str(RECIPE), *pairs, f"network={name}", f"epochs={epochs}", f"out={run}"]
    if code := train.main(["--resume", str(run)] if (run / "last.pt").exists() else new):
        sys.exit(code)
    return folder.read_metrics(run / "metrics.csv")


def spent(rows: list[Row]) -> float:
    """Seconds of training."""
    return sum(row.seconds for row in rows)


def line(name: str, equal: list[Row], timed: list[Row], images: int) -> str:
    """The row of the table."""
    network = model.build(name)
    cells = [
        f"`{name}`",
        f"{model.count_parameters(network):,}",
        f"{model.multiply_adds(network) / 1e6:.1f} million",
        f"{model.receptive_field(network)} px",
        f"{images * len(timed) / spent(timed):,.0f}",
        f"{equal[-1].test_accuracy:.2f}%",
        f"{timed[-1].test_accuracy:.2f}%",
        f"{len(timed)}",
        f"{spent(timed):.0f} s",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
