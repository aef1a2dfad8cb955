"""What is published of the recorded runs is what their files hold."""

import statistics
from pathlib import Path

import pytest
import yaml

from benchmarks.time_to_accuracy import passed
from harness import checkpoint, folder
from tools.predict import SHIPPED

ROOT = Path(__file__).resolve().parent.parent
RUNS = {path.parent.name: path.parent for path in sorted(ROOT.glob("results/*/metrics.csv"))}


def figures(run):
    """The last epoch's test accuracy in percent, and seconds of training: all, until 80% and until 85%."""
    rows = folder.read_metrics(run / "metrics.csv")
    return [
        rows[-1]["test_accuracy"],
        sum(row["seconds"] for row in rows),
        *(seconds for seconds, _ in passed(run)[:2]),
    ]


def row(page, start):
    """The line of a Markdown table that starts so."""
    return next(
        line for line in (ROOT / page).read_text(encoding="utf-8").splitlines() if line.startswith(start)
    )


@pytest.mark.parametrize("name", RUNS)
def test_the_table_of_runs_agrees_with_each(name):
    accuracy, seconds, _, until85 = figures(RUNS[name])
    published = row("results/README.md", f"| `{name}/`")
    assert f"| {accuracy:.2f}% | {seconds:,.0f}" in published and f"{until85:,.0f}" in published
    asked = yaml.safe_load((RUNS[name] / "config.yaml").read_text(encoding="utf-8"))
    assert asked["epochs"] == len(folder.read_metrics(RUNS[name] / "metrics.csv"))


@pytest.mark.parametrize(
    "names, machine",
    [
        (["fast", "fast-seed1", "fast-seed2"], "Zen 4"),
        ([f"fast-xeon-seed{seed}" for seed in range(3)], "Xeon"),
        ([f"fast-zen3-seed{seed}" for seed in range(3)], "Zen 3"),
    ],
)
def test_means_and_deviations_are_those_of_the_seeds(names, machine):
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    published = next(
        line for line in lines if line.startswith("| `fast`, default settings") and machine in line
    )
    columns = list(zip(*(figures(RUNS[name]) for name in names)))
    assert (
        f"{statistics.mean(columns[0]):.2f} ± {statistics.stdev(columns[0]):.2f}% | {len(names)} |"
        in published
    )
    for column in columns[1:]:
        assert f"| {statistics.mean(column):,.0f} ± {statistics.stdev(column):.0f} " in published


def test_the_shipped_weights_are_those_of_the_published_run():
    accuracy, seconds, until80, until85 = figures(RUNS["accurate"])
    published = row("README.md", "| `accurate`, ")
    assert (
        f"| {accuracy:.2f}% | 1 | {seconds:,.0f} " in published
        and f"| {until80:,.0f} | {until85:,.0f} |" in published
    )
    saved = checkpoint.load(SHIPPED)
    assert (saved["network"], round(saved["test_accuracy"], 3)) == ("accurate", accuracy)
