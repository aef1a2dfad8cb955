"""What each kind of convolution buys: the variants of `s8`, trained for the same number of epochs and for the same number of seconds.

    python -m benchmarks.convolutions --seconds 600 dataset=folder data_dir=data/pictures

First the training speed of each is measured. It then trains for as many whole epochs as should fit into the seconds (the table says what
they took), each variant with a learning rate that falls over just that many, and once more for as many epochs as the slowest variant had.
All runs have the settings of recipes/s8.yaml, on images of full size. Called again with the same --out, it goes on where it was stopped.
Leaves table.md, accuracy.png and the run folders in --out.
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
from benchmarks.throughput import rate, real_loop

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "s8.yaml"
HEADER = "| network | parameters | multiply-adds | receptive field | images/s | accuracy after {} epochs | accuracy in {} s | epochs in them | they took |"


def variants():
    """The networks of the study."""
    return [name for name in model.NETWORKS if name.startswith("s8")]


def speeds(dataset, pairs, kept):
    """Images per second of the training loop by variant, measured once and kept in a file."""
    if not kept.exists():
        lines = []
        for name in variants():
            settings = train.resolve(configuration.read([*pairs, f"network={name}"], RECIPE))
            trainer = train.Trainer(settings, dataset, train.pick_device(settings.device))
            lines.append(f"{name} {rate(real_loop(trainer), 10.0)}")
            print(lines[-1], flush=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(kept, "\n".join(lines).encode())
    return {name: float(speed) for name, speed in (line.split() for line in kept.read_text().splitlines())}


def trained(folder, pairs):
    """The rows of the run in `folder`, trained or gone on with as need be; or None if it was stopped or failed."""
    command = ["--resume", str(folder)] if (folder / "last.pt").exists() else ["--config", str(RECIPE), *pairs, f"out={folder}"]
    return None if train.main(command) else files.read_metrics(folder / "metrics.csv")


def main(argv=None):
    """Measure, train, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="name=value")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("runs/convolutions"))
    arguments = parser.parse_intermixed_args(argv)
    pairs = [*arguments.settings, "small_epochs=0"]
    try:
        settings = configuration.read(pairs)
        dataset = data.load(settings.dataset, settings.data_dir)
        speed, images = speeds(dataset, pairs, arguments.out / "speeds.txt"), len(dataset.train.labels)
    except (configuration.SettingsError, data.DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    epochs = {name: max(1, int(arguments.seconds * speed[name] / images)) for name in speed}
    fewest = min(epochs.values())
    timed, lines = {}, [HEADER.format(fewest, arguments.seconds), "|---" * 9 + "|"]
    for name in speed:
        for count in (epochs[name], fewest):
            rows = trained(arguments.out / f"{name}-{count}", [*pairs, f"network={name}", f"epochs={count}"])
            if rows is None:
                return 1
            if count == epochs[name]:
                timed[name] = rows
        network, spent = model.build(name), sum(row["seconds"] for row in timed[name])
        lines.append(f"| `{name}` | {model.count_parameters(network):,} | {model.multiply_adds(network) / 1e6:.1f} million | "
                     f"{model.receptive_field(network)} px | {images * epochs[name] / spent:,.0f} | "
                     f"{rows[-1]['test_accuracy']:.2f}% | {timed[name][-1]['test_accuracy']:.2f}% | {epochs[name]} | {spent:.0f} s |")
    print("\n".join(lines))
    files.write_whole(arguments.out / "table.md", "\n".join([*lines, ""]).encode())
    labelled = {f"{name} {rows[-1]['test_accuracy']:.1f}%": rows for name, rows in timed.items()}
    title = f"as many epochs as fit into {arguments.seconds} seconds, {dataset.source}"
    pictures.write(arguments.out / "accuracy.png", pictures.over_seconds(labelled, title))
    return 0


if __name__ == "__main__":
    sys.exit(main())
