"""What each kind of convolution buys: the variants of `s8`, trained for the same number of epochs and for the same number of seconds.

    python -m benchmarks.convolutions --epochs 3 --seconds 600 dataset=folder data_dir=data/pictures

Each variant trains for the epochs, then anew for the number of them that should come nearest to the seconds, going by what the first run
took (the table says what it came to); the learning rate falls over just that many. All have the settings of recipes/s8.yaml, on images of
full size. Called again with the same --out, it goes on where it was stopped. Leaves table.md, accuracy.png and the run folders there.
"""

import argparse
import sys
from pathlib import Path

import data
import files
import model
import pictures
import settings as configuration
import train

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "s8.yaml"
HEADER = "| network | parameters | multiply-adds | receptive field | images/s | accuracy after {} epochs | accuracy in {} s | epochs in them | they took |"


def variants():
    """The networks of the study."""
    return [name for name in model.NETWORKS if name.startswith("s8")]


def trained(out, name, pairs, epochs):
    """The rows of a variant's run of that many epochs in the folder `out`, trained or gone on with as need be. Ends the process if it fails."""
    folder = out / f"{name}-{epochs}"
    new = ["--config", str(RECIPE), *pairs, f"network={name}", f"epochs={epochs}", f"out={folder}"]
    if code := train.main(["--resume", str(folder)] if (folder / "last.pt").exists() else new):
        sys.exit(code)
    return files.read_metrics(folder / "metrics.csv")


def spent(rows):
    """Seconds of training."""
    return sum(row["seconds"] for row in rows)


def main(argv=None):
    """Train, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="name=value")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("runs/convolutions"))
    arguments = parser.parse_intermixed_args(argv)
    pairs = [*arguments.settings, "small_epochs=0"]
    try:
        settings = configuration.read(pairs)
        dataset = data.load(settings.dataset, settings.data_dir)
    except (configuration.SettingsError, data.DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    timed, lines = {}, [HEADER.format(arguments.epochs, arguments.seconds), "|---" * 9 + "|"]
    for name in variants():
        equal = trained(arguments.out, name, pairs, arguments.epochs)
        timed[name] = rows = trained(arguments.out, name, pairs, max(1, round(arguments.seconds * len(equal) / spent(equal))))
        network = model.build(name)
        lines.append(f"| `{name}` | {model.count_parameters(network):,} | {model.multiply_adds(network) / 1e6:.1f} million | "
                     f"{model.receptive_field(network)} px | {len(dataset.train.labels) * len(rows) / spent(rows):,.0f} | "
                     f"{equal[-1]['test_accuracy']:.2f}% | {rows[-1]['test_accuracy']:.2f}% | {len(rows)} | {spent(rows):.0f} s |")
    print("\n".join(lines))
    files.write_whole(arguments.out / "table.md", "\n".join([*lines, ""]).encode())
    labelled = {f"{name} {rows[-1]['test_accuracy']:.1f}%": rows for name, rows in timed.items()}
    title = f"as many epochs as come nearest to {arguments.seconds} seconds, {dataset.source}"
    pictures.write(arguments.out / "accuracy.png", pictures.over_seconds(labelled, title))
    return 0


if __name__ == "__main__":
    sys.exit(main())
