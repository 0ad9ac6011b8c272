"""Imports run one way: the contract names every package, and an upward import is seen."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tree(tmp_path):
    """A copy of what the contract is about."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for folder in ("src", "data_prep", "benchmarks"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    return tmp_path


def lint(tree):
    """The check of the imports of a tree, as the hook runs it."""
    places = os.pathsep.join([str(tree / "src"), str(tree)])
    return subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": places, "COLUMNS": "200", "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_tree_as_it_is_passes(tree):
    done = lint(tree)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("data_prep.splits", "rpp.data.episodes"),
        ("rpp.types", "data_prep.tables"),
        ("rpp.data.datamodule", "benchmarks.data"),
        ("rpp.metrics", "rpp.cli"),
    ],
)
def test_an_upward_import_is_seen(tree, importer, imported):
    """``data_prep`` once read its table names from ``rpp.data``, which imports ``data_prep``."""
    path = (
        tree / ("src" if importer.startswith("rpp.") else "") / f"{importer.replace('.', '/')}.py"
    )
    path.write_text(f"{path.read_text(encoding='utf-8')}\nimport {imported}\n", encoding="utf-8")
    done = lint(tree)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(rf"{re.escape(importer)} -> {re.escape(imported)}", done.stdout)


def test_the_contract_names_every_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = set()
    for contract in settings["tool"]["importlinter"]["contracts"]:
        for layer in contract.get("layers", ()):
            for name in re.findall(r"[\w.]+", layer):
                named |= {f"{root}.{name}" for root in contract.get("containers", ())} or {name}
    modules = {
        f"rpp.{path.stem}"
        for path in (ROOT / "src/rpp").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert modules - {"rpp.__init__"} <= named
    assert {"data_prep", "benchmarks"} <= named
