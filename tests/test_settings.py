import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import model
from harness import settings
from harness.errors import UserError
from harness.settings import FIELDS, Settings


def file(tmp_path, text):
    path = tmp_path / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_precedence_is_command_line_then_file_then_defaults(tmp_path):
    default = settings.read()
    changed = settings.read(["lr=0.3"], file(tmp_path, "lr: 0.2\nepochs: 7\n"))
    assert (changed.lr, changed.epochs, changed.momentum) == (0.3, 7, default.momentum)


def test_values_take_the_declared_types(tmp_path):
    text = "lr: 1e-3\nnesterov: no\nseed: 010\ndata_dir: 2024-01-01\n"
    found = settings.read(["step_size=4"], file(tmp_path, text))
    assert (found.lr, found.nesterov, found.seed) == (0.001, False, 10)
    assert (found.data_dir, found.step_size) == ("2024-01-01", 4)
    assert settings.read(["step_size="]).step_size is None


@pytest.mark.parametrize("text", ["out: ~\n", "out: null\n", "out:\n"])
def test_nothing_in_yaml_is_nothing(tmp_path, text):
    assert settings.read(config=file(tmp_path, text)).out == ""
    assert settings.read(config=file(tmp_path, 'out: "null"\n')).out == "null"


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for found in (settings.read(["out=~/runs/a"]), settings.read(config=file(tmp_path, "out: ~/runs/a\n"))):
        assert Path(found.out) == tmp_path / "runs" / "a"
    first, second = settings.read(["teachers= a.pt ,, ~/b.pt,"]).teachers.split(",")
    assert (first, Path(second)) == ("a.pt", tmp_path / "b.pt")


def test_a_drive_is_no_address():
    assert settings.read(["data_dir=C://pictures"]).data_dir == "C://pictures"


def test_what_dump_writes_read_takes_back(tmp_path):
    found = settings.read(["lr=0.123456789", "out=Läufe/#1: a", "step_size="])
    assert settings.read(config=file(tmp_path, settings.dump(found))) == found


def test_every_setting_has_a_default_and_one_line_that_explains_it():
    groups = settings.DEFAULTS.read_text(encoding="utf-8").split("\n\n")[1:]
    names = []
    for group in groups:
        heading, *lines = group.splitlines()
        assert re.fullmatch(r"# [A-Z].+", heading)
        names += [re.fullmatch(r"(\w+): *(.*?) *# (.+)", line).group(1) for line in lines]
    assert names == list(FIELDS)


@pytest.mark.parametrize(
    "recipe", sorted((settings.DEFAULTS.parent / "recipes").glob("*.yaml")), ids=lambda path: path.stem
)
def test_each_recipe_names_its_network_and_only_what_differs(recipe):
    found, default = settings.read(config=recipe), settings.read()
    named = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    assert "network" in named and model.build(found.network)
    for name in named:
        assert getattr(found, name) != getattr(default, name), name


@pytest.mark.parametrize(
    "pair, words",
    [
        ("epoch=5", "epochs"),
        ("zzzzzzzzzz=5", "there are network"),
        ("epochs", "name=value"),
        ("epochs=ten", "epochs"),
        ("epochs=1.5", "whole number"),
        ("epochs=0", "epochs"),
        ("epochs=-3", "epochs"),
        ("epochs=", "epochs"),
        ("lr=nan", "lr"),
        ("lr=-0.1", "lr"),
        ("lr=inf", "lr"),
        ("lr=0", "lr"),
        ("batch_size=0", "batch_size"),
        ("dropout=1.5", "dropout"),
        ("crop=40", "crop"),
        ("gamma=0", "gamma"),
        ("flip=maybe", "flip"),
        ("network=resnet", "fast, "),
        ("dataset=mnist", "cifar10, folder, synthetic"),
        ("device=tpu", "auto, cpu"),
        ("device=mps", "auto, cpu"),
        ("compile=auto", "on, false, no, off"),
        ("weights=https://example.org/best.pt", "give the path"),
        ("seed=-1", "seed"),
        ("momentum=0", "nesterov"),
        ("holdout=-1", "holdout"),
        ("step_size=0", "step_size"),
        ("cutmix=1.5", "cutmix"),
        ("cutmix=-1", "cutmix"),
    ],
)
def test_bad_value_is_refused_by_name(pair, words):
    with pytest.raises(UserError) as error:
        settings.read([pair])
    assert words in str(error.value) and pair.split("=")[0] in str(error.value)


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "empty"),
        ("# nothing\n", "empty"),
        ("- lr\n- 0.1\n", "line 1"),
        ("just text", "line 1"),
        ("lr: 0.1\nepochs: [1, 2\n", "line 3"),
        ("lr: 0.1\nlr: 0.2\n", "line 2: lr is set twice"),
        ("lr:\n  a: 1\n", "line 1"),
        ("epochs: 5\nepohcs: 6\n", "line 2): did you mean epochs"),
        ("seed: 1\nlr: fast\n", "line 2"),
        ("[" * 5000, "my.yaml"),
        ("lr: 1\n---\nlr: 2\n", "my.yaml"),
    ],
)
def test_bad_file_is_refused_with_its_line(tmp_path, text, words):
    with pytest.raises(UserError) as error:
        settings.read(config=file(tmp_path, text))
    assert words in str(error.value) and "my.yaml" in str(error.value)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(UserError, match="none.yaml: cannot be read"):
        settings.read(config=tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match="binary.yaml"):
        settings.read(config=tmp_path / "binary.yaml")
    (tmp_path / "bell.yaml").write_text("lr: 0.1 \x07\n")
    with pytest.raises(UserError, match="bell.yaml: not valid YAML .special characters are not allowed"):
        settings.read(config=tmp_path / "bell.yaml")


def test_the_network_is_that_of_the_weights_unless_another_is_asked_for(finished):
    weights = f"weights={finished / 'best.pt'}"
    for asked in ([weights], [weights, "network=fast"]):
        assert settings.parse(asked, "").settings.network == "fast"
    with pytest.raises(UserError, match="holds fast, not s8"):
        settings.parse([weights, "network=s8"], "")


def test_a_network_of_ones_own_can_be_asked_for(monkeypatch):
    monkeypatch.setitem(model.NETWORKS, "mine", model.fast)
    assert settings.read(["network=mine"]).network == "mine"


names = st.one_of(st.sampled_from(list(FIELDS)), st.text(max_size=8))
values = st.one_of(
    st.text(max_size=12), st.integers().map(str), st.floats().map(str), st.booleans().map(str), st.just("")
)


def valid_or_one_line(pairs, config=None):
    try:
        assert isinstance(settings.read(pairs, config), Settings)
    except UserError as error:
        assert len(str(error).splitlines()) == 1


@given(st.lists(st.tuples(names, values).map("=".join) | st.text(max_size=20), max_size=4))
def test_any_command_line_is_valid_or_refused_in_one_line(pairs):
    valid_or_one_line(pairs)


@given(
    st.one_of(st.text(), st.lists(st.tuples(names, values).map(": ".join), max_size=5).map("\n".join)).map(
        str.encode
    )
    | st.binary(max_size=60)
)
def test_any_file_is_valid_or_refused_in_one_line(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    valid_or_one_line([], path)


def test_the_config_file_is_read_once_so_that_it_may_be_a_pipe(tmp_path, monkeypatch):
    asked, read_yaml = [], settings.read_yaml
    monkeypatch.setattr(settings, "read_yaml", lambda path: asked.append(Path(path)) or read_yaml(path))
    config = tmp_path / "my.yaml"
    config.write_text("lr: 0.125\n")
    assert settings.parse(["--config", str(config)], "help").settings.lr == 0.125
    assert asked.count(config) == 1
