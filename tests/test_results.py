"""What is published of the recorded runs is what their files hold."""

import statistics
from pathlib import Path

import pytest
import yaml

import model
from benchmarks.time_to_accuracy import passed
from harness import checkpoint, folder
from tools.predict import SHIPPED

ROOT = Path(__file__).resolve().parent.parent
RUNS = {path.parent.name: path.parent for path in sorted(ROOT.glob("results/*/metrics.csv"))}


def figures(run):
    """The last epoch's test accuracy in percent, and seconds of training: all, until 80% and until 85%."""
    rows = folder.read_metrics(run / "metrics.csv")
    return [
        rows[-1].test_accuracy,
        sum(row.seconds for row in rows),
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
    "page, start, names",
    [
        ("docs/fast.md", "| `fast` |", ["fast", "fast-seed1", "fast-seed2"]),
        ("README.md", "| `fast`, the default", ["fast", "fast-seed1", "fast-seed2"]),
        ("docs/fast.md", "| before |", [f"trials/turns-before-seed{seed}" for seed in range(3)]),
        ("docs/fast.md", "| AMD EPYC (Zen 5", [f"trials/before-zen5-seed{seed}" for seed in range(3)]),
        ("docs/fast.md", "| Intel Xeon", [f"trials/before-xeon-seed{seed}" for seed in range(3)]),
        ("docs/fast.md", "| AMD EPYC (Zen 3", [f"trials/before-zen3-seed{seed}" for seed in range(3)]),
    ],
)
def test_means_and_deviations_are_those_of_the_seeds(page, start, names):
    published = row(page, start)
    accuracy, *seconds = zip(*(figures(ROOT / "results" / name) for name in names))
    assert f"| {statistics.mean(accuracy):.2f} ± {statistics.stdev(accuracy):.2f}%" in published
    for column in seconds if page == "docs/fast.md" else seconds[:1]:
        assert f"| {statistics.mean(column):,.0f} ± {statistics.stdev(column):.0f} |" in published


@pytest.mark.parametrize("name, start", [("accurate", "| `accurate` |"), ("s8", "| `s8`, where we began |")])
def test_single_runs_are_those_recorded(name, start):
    accuracy, seconds, *_ = figures(RUNS[name])
    assert f"| {accuracy:.2f}% (1 seed) | {seconds:,.0f} |" in row("README.md", start)


@pytest.mark.parametrize(
    "start, name",
    [
        ("| `fast`, seed 0 |", "sitting-zen3-fast-seed0"),
        ("| `fast`, seed 1 |", "sitting-zen3-fast-seed1"),
        ("| first step |", "sitting-fast"),
        ("| version before |", "sitting-before"),
    ],
)
def test_the_sittings_with_s8_are_those_recorded(start, name):
    accuracy, *seconds = figures(ROOT / "results/trials" / name)
    columns = " | ".join(f"{each:,.0f}" for each in seconds)
    assert row("docs/fast.md", start).startswith(f"{start} {accuracy:.2f}% | {columns} |")


def test_the_shipped_weights_are_those_of_the_published_run():
    saved = checkpoint.load(SHIPPED)
    assert (saved["network"], round(saved["test_accuracy"], 3)) == ("accurate", figures(RUNS["accurate"])[0])
    assert model.load(SHIPPED).classes[:2] == ["airplane", "automobile"]


def test_starting_from_weights_is_as_good_as_the_readme_says():
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("\n", " ")
    for kind in ("from-eight", "scratch"):
        runs = [folder.read_metrics(ROOT / f"results/weights/{kind}-{seed}/metrics.csv") for seed in range(3)]
        for epoch in (0, -1):
            scores = [rows[epoch].test_accuracy for rows in runs]
            assert f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}%" in readme
