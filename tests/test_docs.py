"""What people read holds together, and the program keeps to its own plan."""

import ast
import re
from pathlib import Path

import pytest

import model

ROOT = Path(model.__file__).parent
PAGES = [*(ROOT / name / "README.md" for name in ("", "results", "study")), *sorted(ROOT.glob("docs/*.md"))]


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


def test_the_readme_is_short_and_the_training_one_sitting():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
    source = (ROOT / "train.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 250
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 40, node.name
