"""What people read holds together, and the program keeps to its own plan."""

import ast
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import data
import model
import train
from harness import folder

ROOT = Path(model.__file__).parent
PAGES = [
    *(ROOT / name / "README.md" for name in ("", "results", "study", "benchmarks")),
    *sorted(ROOT.glob("docs/*.md")),
]


@pytest.mark.parametrize("name", model.NETWORKS)
def test_the_pages_tell_the_truth_about_each_network(name):
    network = model.build(name)
    million = f"{model.multiply_adds(network) / 1e6:.1f} million"
    facts = f"| {model.count_parameters(network):,} | {million} | {model.receptive_field(network)} px |"
    page = ROOT / ("study/README.md" if name in model.STUDY else "README.md")
    lines = page.read_text(encoding="utf-8").splitlines()
    assert any(line.startswith(f"| `{name}`") and facts in line for line in lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_commands_name_scripts_and_modules_that_are_there():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for module in re.findall(r"python -m ((?:tools|benchmarks|study|tests)\.\w+)", text):
            assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
        for name in re.findall(r"recipes/\w+\.yaml", text):
            assert (ROOT / name).exists(), name


def test_train_reads_as_a_training():
    source = (ROOT / "train.py").read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        assert not isinstance(node, (ast.Yield, ast.YieldFrom)), "plain loops, no generators"
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 40, node.name


@pytest.mark.parametrize("path", sorted((ROOT / "harness").glob("*.py")), ids=lambda path: path.stem)
def test_harness_knows_nothing_of_the_training(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert not {"train", "study", "tools", "benchmarks"} & {name.split(".")[0] for name in names}


YAML = [ROOT / "config.yaml", ROOT / "study" / "about.yaml", *sorted(ROOT.glob("recipes/*.yaml"))]


@pytest.mark.parametrize("page", PAGES + YAML, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_of_a_page_end_before_column_110(page):
    for line in page.read_text(encoding="utf-8").splitlines():
        assert len(line) <= 110 or line.startswith("|"), line


def test_networks_and_data_stand_alone():
    """model.py and data.py can be copied into another project: they need no more."""
    for name in ("model.py", "data.py"):
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
        imported = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
        for node in tree.body:
            imported += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        ours = {"train", "model", "data", "harness", "tools", "benchmarks", "study"}
        assert not ours & {module.split(".")[0] for module in imported}


def test_the_code_of_the_readme_runs_and_its_run_resumes(pictures, tmp_path, monkeypatch, capsys):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(data.SOURCES, "cifar10", lambda root: data.folder(pictures))
    monkeypatch.setitem(model.NETWORKS, "mine", None)  # gone again after the test
    Image.new("RGB", (50, 40)).save("cat.jpg")
    exec(code.replace('"results/', f'"{(ROOT / "results").as_posix()}/'), {})
    classes = model.load(ROOT / "results" / "taught" / "weights.pt").classes
    assert capsys.readouterr().out.splitlines()[0] in classes
    (run,) = (tmp_path / "runs").iterdir()
    assert len(folder.read_metrics(run / "metrics.csv")) == 5
    assert train.main(["--resume", str(run), "epochs=6"]) == 0
