"""What is published of the recorded runs and of the trials is what their files hold."""

import csv
import dataclasses
import datetime
import re
import statistics
from pathlib import Path

import pytest
import torch
import yaml

import model
from benchmarks.time_to_accuracy import passed
from harness import checkpoint, folder
from harness import settings as configuration
from tools.predict import SHIPPED

ROOT = Path(__file__).resolve().parent.parent
RUNS = {path.parent.name: path.parent for path in sorted(ROOT.glob("results/*/metrics.csv"))}
with open(ROOT / "results" / "trials.csv", newline="", encoding="utf-8") as file:
    TRIALS = {trial["trial"]: trial for trial in csv.DictReader(file)}
FAST = ["fast", "fast-seed1", "fast-seed2"]


def seeds(name):
    """The names of three trials that differ in the seed."""
    return [f"{name}-seed{seed}" for seed in range(3)]


def figures(name):
    """The last epoch's test accuracy in percent, and seconds of training: all, until 80% and until 85%."""
    if name in TRIALS:
        columns = ("accuracy", "seconds", "seconds_to_80", "seconds_to_85")
        return [float(TRIALS[name][column] or "nan") for column in columns]
    rows = folder.read_metrics(RUNS[name] / "metrics.csv")
    until = [reached[0] if reached else float("nan") for reached in passed(RUNS[name])[:2]]
    return [rows[-1].test_accuracy, sum(row.seconds for row in rows), *until]


def last_3(names):
    """The mean of the accuracies that trials had in their last three epochs."""
    return statistics.mean(float(TRIALS[name]["mean_of_last_3"]) for name in names)


def cells(page, words):
    """What stands in the columns of the first line of a table that has these words."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    line = next(line for line in lines if line.startswith("|") and words in line)
    return [cell.strip() for cell in line.strip("|").split("|")]


def text(page):
    """A page as one line."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


def spread(values, digits):
    """Mean and standard deviation as a page gives them."""
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def test_the_table_of_trials_can_be_read_by_all():
    path = ROOT / "results" / "trials.csv"
    assert path.stat().st_size < 60_000
    with open(path, newline="", encoding="utf-8") as file:
        names = [row["trial"] for row in csv.DictReader(file, strict=True)]
    assert names == sorted(set(names))
    for trial in TRIALS.values():
        assert None not in trial and None not in trial.values(), "as many cells as columns"
        datetime.date.fromisoformat(trial["date"])
        assert trial["scored_on"] in ("test", "held-out")
        assert all("=" in pair for pair in trial["settings"].split())
        assert all(10 < float(trial[name] or 50) <= 100 for name in ("accuracy", "mean_of_last_3"))


@pytest.mark.parametrize("name", RUNS)
def test_the_table_of_runs_agrees_with_each(name):
    accuracy, seconds, _, until_85 = figures(name)
    asked = yaml.safe_load((RUNS[name] / "config.yaml").read_text(encoding="utf-8"))
    published = [
        f"{accuracy:.2f}%",
        f"{seconds:,.0f}",
        "at once" if asked.get("weights") else f"{until_85:,.0f}",
    ]
    assert cells("results/README.md", f"| `{name}/`")[-3:] == published
    assert asked["epochs"] == len(folder.read_metrics(RUNS[name] / "metrics.csv"))


@pytest.mark.parametrize(
    "start, names",
    [
        ("| `fast` of commit b44fd7d", seeds("turns-fast")),
        ("| before |", seeds("turns-before")),
        ("| `fast` as it is now", FAST),
    ],
)
def test_means_and_deviations_are_those_of_the_seeds(start, names):
    accuracy, *times = zip(*map(figures, names))
    assert cells("docs/fast.md", start)[1:] == [
        f"{spread(accuracy, 2)}%",
        *(spread(seconds, 0) for seconds in times),
    ]


def test_the_readme_says_what_the_runs_reached():
    accuracy, seconds, *_ = zip(*map(figures, FAST))
    row = cells("README.md", "| `fast`, the default")
    assert f"{spread(accuracy, 2)}% (3 seeds)" in row and in_row(row, statistics.mean(seconds))
    accuracy, seconds, *_ = figures("accurate")
    row = cells("README.md", "| `accurate` |")
    assert f"{accuracy:.2f}% (1 seed)" in row and in_row(row, seconds)
    accuracy, seconds, *_ = figures("taught")
    row = cells("README.md", "| `accurate`, then taught")
    assert f"{accuracy:.2f}% (1 seed)" in row and in_row(row, seconds)
    assert f"The most accurate one reaches {accuracy:.1f}%" in text("README.md")
    row = cells("README.md", "| `s8`, where we began")
    assert any(
        f"{accuracy:.2f}% (1 seed)" in row and in_row(row, seconds)
        for accuracy, seconds, *_ in map(figures, ["s8", "sitting-s8"])
    )


def in_row(row, seconds):
    """Whether a cell starts with these seconds, or with as many minutes."""
    starts = [re.split(r"[ ]|,(?!\d)", cell)[0] for cell in row]
    return f"{seconds:,.0f}" in starts or f"{seconds / 60:.0f}" in starts


@pytest.mark.parametrize(
    "start, name",
    [
        ("| Zen 5 | `fast` with max pooling", "sitting-fast"),
        ("| Zen 5 | `s8`", "sitting-s8"),
        ("| Zen 3 | `fast`, seed 0", "sitting-zen3-fast-seed0"),
        ("| Zen 3 | `fast`, seed 1", "sitting-zen3-fast-seed1"),
        ("| Zen 3 | `s8`", "sitting-zen3-s8"),
    ],
)
def test_the_sittings_with_s8_are_those_recorded(start, name):
    accuracy, *times = figures(name)
    published = [f"{seconds:,.0f}".replace("nan", "not reached") for seconds in times]
    assert cells("docs/fast.md", start)[2:] == [f"{accuracy:.2f}%", *published]


@pytest.mark.parametrize(
    "page, sentence, name",
    [
        ("docs/accurate.md", "network gives {}% with one view", "taught"),
        ("docs/accurate.md", "from the labels alone, which gave {}%", "accurate"),
        ("docs/accurate.md", "beaten seven others with {}%", "design-deep8"),
        ("docs/accurate.md", "two ResNets came to {}%", "design-resnet14"),
        ("docs/accurate.md", "and {}%. Later three", "design-resnet20"),
        ("docs/accurate.md", "with 18 at each rate, it had {}%", "autoaugment"),
        ("docs/accurate.md", "the network ended at {}% with one view", "autoaugment-second"),
        ("results/README.md", "`s8` ended at {}% on a Zen 5", "sitting-s8"),
    ],
)
def test_what_is_said_in_words_is_what_is_recorded(page, sentence, name):
    accuracy, *_ = figures(name)
    assert sentence.format(f"{accuracy:.2f}") in text(page)


def test_the_page_of_fast_reckons_rightly():
    page = text("docs/fast.md")
    _, whole, *_ = figures("sitting-s8")
    assert f"does not get to 85% in {whole:,.0f} seconds" in page
    assert round(whole / figures("sitting-fast")[3]) == 16 and "a sixteenth of that" in page
    parts = [17_200 / figures(f"sitting-zen3-fast-seed{seed}")[3] for seed in (1, 0)]
    assert "would take 17,200 seconds" in page and "after a {:.0f}th to a {:.0f}th".format(*parts) in page
    narrow, wide = (sum(figures(name)[1] for name in levers(*numbers)) for numbers in ((13, 17), (15, 18)))
    assert f"which take {narrow / wide:.2f} of the time" in page


@pytest.mark.parametrize(
    "ours, theirs, sentence",
    [
        (seeds("fast-crop4"), seeds("before-zen5"), "| 85% in {} of the time |"),
        (seeds("turns-fast"), seeds("turns-before"), "commit b44fd7d reached 85% in {} of the time"),
    ],
)
def test_the_page_of_fast_compares_seed_by_seed(ours, theirs, sentence):
    ratios = [figures(mine)[3] / figures(its)[3] for mine, its in zip(ours, theirs, strict=True)]
    assert sentence.format(spread(ratios, 2)) in text("docs/fast.md")


def test_the_page_of_fast_says_what_leaving_out_saves():
    (accuracy, seconds, *_), (same, longer, *_) = (
        zip(*map(figures, seeds(name))) for name in ("fast-crop4", "before-zen5")
    )
    assert f"{statistics.mean(accuracy):.1f}" == f"{statistics.mean(same):.1f}"
    assert f"the accuracy stayed at {statistics.mean(same):.1f}%" in text("docs/fast.md")
    assert f"{spread(seconds, 0)} seconds in place of {spread(longer, 0)}." in text("docs/fast.md")


def test_the_page_of_fast_says_what_24_epochs_gave():
    accuracy = [figures(name)[0] for name in seeds("fast-24")]
    assert f"they gave {spread(accuracy, 2)}%, two of three seeds below 85%" in text("docs/fast.md")
    assert sum(value < 85 for value in accuracy) == 2


def levers(*numbers):
    """The names of trials of levers."""
    return [f"lever-{number:03}" for number in numbers]


PLAIN = levers(15, 18)  # 24 epochs, seeds 0 and 1, average=0.998
QUICK = levers(44, 45)  # the same with average=0.996
CHANGES = [
    ("average pooling in place of max", seeds("held-out-average"), seeds("held-out-max")),
    ("shift images by up to 2", levers(30, 87, 92, 94), levers(15, 18, 93, 95)),
    ("BatchNorm's averages move", levers(26, 85), PLAIN),
    ("`lr=0.2`", levers(23, 84), PLAIN),
    ("all images in the last epoch only", levers(38, 76), PLAIN),
    ("28 epochs in place of 24", levers(33, 35), PLAIN),
    ("falls in every epoch", levers(24, 82), PLAIN),
    ("BatchNorm without a scale", levers(25, 86), PLAIN),
    ("drawn by lot", levers(31, 77), PLAIN),
    ("half of the images left out", levers(53, 54), QUICK),
    ("narrower layers", levers(13, 17), PLAIN),
    ("no weight decay on BatchNorm", levers(51, 52), QUICK),
    ("batches of 256", levers(28, 97), QUICK),
    ("64 and 80 channels", levers(64, 65), QUICK),
    ("no padding", levers(49, 50), QUICK),
    ("ReLU", levers(34, 96), PLAIN),
    ("hardest 10%", levers(47, 90), PLAIN),
    ("hardswish", levers(37, 115), PLAIN),
]


@pytest.mark.parametrize("words, changed, as_it_was", CHANGES, ids=[words for words, *_ in CHANGES])
def test_the_page_of_fast_says_what_each_change_gave(words, changed, as_it_was):
    points = f"{last_3(changed) - last_3(as_it_was):+.1f}".replace("-", "−").replace("+0.0", "0.0")
    assert cells("docs/fast.md", words)[1].removesuffix(" points") == points
    assert [TRIALS[name]["seed"] for name in changed] == [TRIALS[name]["seed"] for name in as_it_was]


@pytest.mark.parametrize("name", ["deep", "shared", "separables", "separables-16", "gates", "plain"])
def test_the_page_of_accurate_has_the_designs_as_recorded(name):
    trial = TRIALS[f"candidates/{name}"]
    assert cells("docs/accurate.md", f"| `{name}`")[3:5] == [f"{trial['accuracy']}%", trial["loss"]]


@pytest.mark.parametrize(
    "start, name",
    [
        ("| an earlier plain design", "accurate-100"),
        ("| the same |", "accurate-160"),
        ("| `plain` | 210", "accurate-plain"),
        ("| `accurate`: `separables` and", "accurate-300"),
    ],
)
def test_the_page_of_accurate_has_the_long_runs_as_recorded(start, name):
    trial = TRIALS[name]
    row = cells("docs/accurate.md", start)
    assert [row[1], *row[4:]] == [trial["epochs"], f"{trial['accuracy']}%", f"{trial['train_accuracy']}%"]


def test_the_page_of_accurate_has_the_recorded_run():
    rows = folder.read_metrics(RUNS["accurate"] / "metrics.csv")
    published = [str(len(rows)), f"{rows[-1].test_accuracy:.2f}%", f"{rows[-1].train_accuracy:.2f}%"]
    row = cells("docs/accurate.md", "| `accurate`, the first part")
    assert [row[1], *row[4:]] == published


def test_the_page_of_accurate_says_what_less_weight_decay_gave():
    at_the_end = {row.lr: row.test_accuracy for row in folder.read_metrics(RUNS["accurate"] / "metrics.csv")}
    for lr, accuracy in at_the_end.items():
        assert cells("docs/accurate.md", f"| {lr:g} |")[2] == f"{accuracy:.2f}%"
    before, now = figures("accurate-300")[0], figures("accurate")[0]
    assert cells("docs/accurate.md", "| 0.003125 |")[1] == f"{before:.2f}%"
    assert f"`accurate` ended {now - before:.1f} points higher" in text("docs/accurate.md")
    assert cells("docs/accurate.md", "| `weight_decay=1e-4` in place of")[1] == f"{now - before:+.1f}"


@pytest.mark.parametrize(
    "start, name",
    [
        ("| `weight_decay=1e-3` |", "decay-1e-3"),
        ("| `weight_decay=5e-4` |", "decay-5e-4"),
        ("| the same, but none on BatchNorm", "decay-5e-4-spared"),
        ("| `weight_decay=1e-4` |", "decay-1e-4"),
    ],
)
def test_the_page_of_accurate_has_the_trials_of_weight_decay(start, name):
    trial = TRIALS[f"trial-{name}"]
    recorded = [f"{trial['accuracy']}%", trial["loss"], f"{trial['train_accuracy']}%"]
    assert cells("docs/accurate.md", start)[1:] == recorded


@pytest.mark.parametrize(
    "start, name",
    [
        ("| with channel attention", "accurate-eca"),
        ("| with groups of 8", "accurate-grouped"),
        ("| `g8b2`, bottlenecks", "g8b2"),
    ],
)
def test_the_page_of_accurate_has_the_later_designs(start, name):
    trial = TRIALS[f"trial-{name}"]
    *_, after_6, after_12, _ = cells("docs/accurate.md", start)
    for accuracy in (after_6, after_12):
        assert accuracy in f"{trial['accuracy']}%, {trial['note']}, not run"
    for accuracy in cells("docs/accurate.md", "| `accurate` | 199,936")[3:5]:
        assert accuracy in TRIALS["trial-g8b2"]["note"]


def test_the_page_of_accurate_says_what_label_smoothing_gave():
    without, usual = (figures(f"trial-{name}")[0] for name in ("smoothing-0", "decay-1e-4"))
    points = f"{without - usual:+.1f}".replace("-", "−").replace("+0.0", "0.0")
    assert cells("docs/accurate.md", "| `label_smoothing=0` in place of")[1] == points
    ended = f"`label_smoothing=0` ended at {without:.2f}% on held-out images, the usual 0.1 at {usual:.2f}%"
    assert ended in text("docs/accurate.md")
    assert "87.70%" in text("docs/accurate.md") and "87.70%" in TRIALS["trial-smoothing-0"]["note"]


def test_the_page_of_accurate_says_how_many_filters_a_strong_decay_put_to_sleep():
    asleep = TRIALS["trial-decay-1e-3"]["note"].split()[0]
    assert f"in the short run with 1e-3 {asleep} of the 1,760 filters" in text("docs/accurate.md")


def test_the_page_of_accurate_says_what_weight_decay_gave_in_a_short_run():
    strong, spared, weak = (figures(f"trial-decay-{name}")[0] for name in ("5e-4", "5e-4-spared", "1e-4"))
    for start, points in (
        ("| the same in a short run", weak - strong),
        ("| no weight decay on", spared - strong),
    ):
        assert cells("docs/accurate.md", start)[1] == f"{points:+.1f}".replace("-", "−")
    assert f"cost {strong - spared:.1f} points in a short run" in text("docs/accurate.md")


def test_the_page_of_accurate_says_what_teachers_gave():
    rows = folder.read_metrics(RUNS["taught"] / "metrics.csv")
    for row in rows[11::12]:
        epoch, _, accuracy = cells("docs/accurate.md", f"| {row.lr:g} | {row.epoch} |")[1:]
        assert [epoch, accuracy] == [str(row.epoch), f"{row.test_accuracy:.2f}%"]
    alone, taught = figures("autoaugment-second")[0], figures("taught")[0]
    assert cells("docs/accurate.md", "| 0.00625 | 48 |")[2] == f"{alone:.2f}%"
    assert cells("docs/accurate.md", "| the same with two teachers")[1] == f"{taught - alone:+.1f}"
    assert f"ended at {rows[0].test_accuracy:.2f}%" in text("results/README.md")
    two, six = (cells("docs/accurate.md", f"| {views} views |")[3] for views in ("two", "six"))
    assert f"{two} with two and {six} with six (one seed)" in text("docs/accurate.md")
    assert f"`taught` {two}, with six 91.43% and {six}" in text("results/README.md")


def test_the_page_of_accurate_says_what_teaching_once_more_gave():
    page, again, before = text("docs/accurate.md"), figures("taught-again")[0], figures("taught")[0]
    assert f"from {before:.2f}% on with" in page and f"ended at {again:.2f}%, after 91.26% at the" in page
    assert ", 91.26 and" in TRIALS["taught-again"]["note"]
    assert abs(again - before) < 0.1 and cells("docs/accurate.md", "| 40 epochs more with these")[1] == "0.0"


def test_the_page_of_accurate_says_what_a_strong_decay_gave_with_teachers():
    page, trial = text("docs/accurate.md"), TRIALS["taught-decay"]
    ends, points = (
        "89.05, 89.92, 90.59 and 91.09%",
        cells("docs/accurate.md", "| `weight_decay=5e-4` while these")[1],
    )
    assert f"{ends} at the end of the four" in page and f"{ends} at the end of 0.05" in trial["note"]
    assert f"at 0.003125 gave {trial['accuracy']}%, with two views" in page
    level = float(ends.split()[-1].strip("%")) - figures("taught")[0]
    assert points == "0.0" and abs(level) < 0.05


def test_the_page_of_accurate_says_what_teachers_gave_from_the_beginning():
    alone = folder.read_metrics(RUNS["accurate"] / "metrics.csv")[21:88:22]
    note = TRIALS["taught-fresh"]["note"]
    taught = [
        cells("docs/accurate.md", f"| {row.lr:g} | {row.epoch} | {row.test_accuracy:.2f}%")[3]
        for row in alone
    ]
    assert "{}, {}, {} and {} at the end of".format(*(text.strip("%") for text in taught)) in note.replace(
        "%", ""
    )
    gain = float(taught[-1].strip("%")) - alone[-1].test_accuracy
    assert cells("docs/accurate.md", "| two teachers in a training")[1] == f"{gain:+.1f}".replace("-", "−")


def test_the_page_of_accurate_says_what_an_equal_teacher_gave():
    page, alone, taught = text("docs/accurate.md"), TRIALS["trial-decay-1e-4"], TRIALS["trial-taught-by-one"]
    assert f"`accurate` had {alone['accuracy']}%" in page and f"ended at {taught['accuracy']}% too" in page
    assert f"{taught['loss']} in place of {alone['loss']}" in page
    points = float(taught["accuracy"]) - float(alone["accuracy"])
    assert cells("docs/accurate.md", "| one teacher that is as good")[1] == f"{points:.1f}"


def held_out(design):
    """The accuracy that a design for `accurate` had on held-out images after 30 epochs."""
    return float(TRIALS[f"candidates/{design}"]["accuracy"])


def test_the_page_of_accurate_says_what_the_design_gave():
    points = held_out("separables") - held_out("plain")
    assert cells("docs/accurate.md", "| deep separable")[1] == f"{points:+.1f}"


def test_the_page_of_accurate_says_what_depth_gives_and_jpeg_costs():
    page = text("docs/accurate.md")
    deep = [held_out(name) for name in ("deep", "shared", "separables", "separables-16", "gates")]
    least, most = min(deep) - held_out("plain"), max(deep) - held_out("plain")
    assert f"{least:.1f} to {most:.1f} points over `plain`" in page
    once, twice = figures("before-zen3-seed0")[0], figures("fast-jpeg-twice")[0]
    assert f"fell from {once:.2f}% to {twice:.2f}%" in page


@pytest.mark.parametrize("name", ["fast", "accurate", "s8", "s8-strided", "s8-pooled"])
def test_the_page_of_speed_divides_rightly(name):
    _, training, convolutions, share = cells("docs/speed.md", f"| `{name}` |")
    assert f"{int(training.replace(',', '')) / int(convolutions.replace(',', '')):.2f}" == share


@pytest.mark.parametrize(
    "file, name",
    [
        (SHIPPED, "taught"),
        (ROOT / "results" / "accurate" / "weights.pt", "accurate"),
        (ROOT / "results" / "teachers" / "autoaugment.pt", "autoaugment-second"),
        (ROOT / "results" / "teachers" / "300-epochs.pt", "accurate-300"),
    ],
)
def test_the_weights_are_those_of_the_published_runs(file, name):
    saved = checkpoint.load(file)
    assert (saved["network"], round(saved["test_accuracy"], 3)) == ("accurate", figures(name)[0])
    assert model.load(file).classes[:2] == ["airplane", "automobile"]


@pytest.mark.parametrize("name", ["accurate", "taught", "s8"])
def test_a_recipe_is_what_its_run_was_made_by(name):
    recorded = configuration.of_run(RUNS[name])
    recipe = configuration.read(config=ROOT / "recipes" / f"{name}.yaml")
    of_the_machine = ["dataset", "data_dir", "out", "device", "compile", "checkpoint_minutes"]
    same = {setting: getattr(recorded, setting) for setting in of_the_machine}
    assert recorded == dataclasses.replace(recipe, **same, step_size=recorded.step_size)
    assert recorded.fall_every == recipe.fall_every


def test_the_page_of_accurate_counts_the_channels_that_sleep():
    weights = checkpoint.load(ROOT / "results" / "accurate" / "weights.pt")["weights"].values()
    depthwise = [weight.flatten(1).norm(dim=1) for weight in weights if weight.shape[1:] == (1, 3, 3)]
    asleep = (torch.cat(depthwise) < 0.001).sum()
    page = text("docs/accurate.md")
    assert f"of the {len(torch.cat(depthwise)):,} depthwise filters" in page
    assert asleep == 0 and "with the weaker one none has" in page


@pytest.mark.parametrize(
    "kind, start", [("from-eight", "| from the weights of `eight`"), ("scratch", "| fresh weights")]
)
def test_starting_from_weights_is_as_good_as_the_pages_say(kind, start):
    runs = [TRIALS[f"weights/{kind}-{seed}"] for seed in range(3)]
    first = [float(run["note"].split("%")[0]) for run in runs]  # 65.10% after one epoch
    last = f"{spread([float(run['accuracy']) for run in runs], 1)}%"
    assert cells("results/README.md", start)[1:] == [f"{spread(first, 1)}%", last]
    assert last in text("README.md")
