"""The project's own files agree: imports with dependencies, ranges with lock, README with tree."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("features", "training", "workflows")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def locked() -> dict[str, Version]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pins}


def declared(project: dict[str, Any]) -> dict[str, list[Requirement]]:
    """Requirements by where they are declared: `core`, or an extra with those it includes."""
    groups = {
        "core": project["project"]["dependencies"],
        **project["project"]["optional-dependencies"],
    }

    def expand(group: str) -> list[Requirement]:
        found = []
        for requirement in map(Requirement, groups[group]):
            if requirement.name == "sensorium":
                found.extend(r for extra in sorted(requirement.extras) for r in expand(extra))
            else:
                found.append(requirement)
        return found

    return {group: expand(group) for group in groups}


def import_of_an_extra(node: ast.AST) -> tuple[str, str] | None:
    """The module and the extra of a call `import_extra("soundfile", extra="audio")`."""
    match node:
        case ast.Call(
            func=ast.Name("import_extra"),
            args=[ast.Constant(str(module))],
            keywords=[ast.keyword("extra", ast.Constant(str(extra)))],
        ):
            return module, extra
    return None


OURS = (*LAYERS, "tests", "benchmarks")


def third_party_imports(folder: Path) -> dict[str, str]:
    """Top-level modules that are neither ours nor Python's, each with a file that imports it."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            elif call := import_of_an_extra(node):
                names = [call[0]]
            for name in names:
                top = name.split(".")[0]
                if top not in sys.stdlib_module_names and top not in OURS:
                    found.setdefault(top, str(path.relative_to(ROOT)))
    return found


@functools.cache
def installed_modules() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def distributions_of(module: str) -> set[str]:
    return {canonicalize_name(name) for name in installed_modules().get(module, [])}


@pytest.mark.parametrize("layer", LAYERS)
def test_what_the_packages_import_is_declared(layer: str, project: dict[str, Any]) -> None:
    users = {
        canonicalize_name(requirement.name)
        for group, requirements in declared(project).items()
        if group != "dev"
        for requirement in requirements
    }
    undeclared = {
        module: file
        for module, file in third_party_imports(ROOT / layer).items()
        if not distributions_of(module) & users
    }
    assert undeclared == {}, "add them to the dependencies, or to an extra, of pyproject.toml"


def test_an_optional_import_names_the_extra_that_brings_it(project: dict[str, Any]) -> None:
    """What the message of a missing library tells to install does bring that library."""
    calls = [
        call
        for layer in LAYERS
        for path in (ROOT / layer).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (call := import_of_an_extra(node))
    ]
    assert calls
    for module, extra in calls:
        brought = {canonicalize_name(requirement.name) for requirement in declared(project)[extra]}
        assert distributions_of(module.split(".")[0]) & brought, f"sensorium[{extra}]: {module}"


def test_what_the_tests_import_is_locked(locked: dict[str, Version]) -> None:
    strangers = {
        module: file
        for module, file in third_party_imports(ROOT / "tests").items()
        if not distributions_of(module) & locked.keys()
    }
    assert strangers == {}, "declare them in the extra `dev` of pyproject.toml, and run `make lock`"


def test_no_dependency_is_declared_that_nothing_imports(project: dict[str, Any]) -> None:
    imported = {
        name
        for folder in LAYERS
        for module in third_party_imports(ROOT / folder)
        for name in distributions_of(module)
    }
    idle = {
        requirement.name
        for group, requirements in declared(project).items()
        if group != "dev"
        for requirement in requirements
        if canonicalize_name(requirement.name) not in imported
    }
    assert idle == set(), "a dependency earns its place"


def test_the_lock_pins_every_dependency_within_its_range(
    project: dict[str, Any], locked: dict[str, Version]
) -> None:
    builds = [Requirement(line) for line in project["build-system"]["requires"]]
    for requirement in [*builds, *(r for group in declared(project).values() for r in group)]:
        name = canonicalize_name(requirement.name)
        assert name in locked, f"{name} is not in requirements.lock; run `make lock`"
        assert locked[name] in requirement.specifier, (
            f"requirements.lock has {name} {locked[name]}, pyproject.toml asks for {requirement}"
        )


def test_the_lock_is_whole(locked: dict[str, Version]) -> None:
    """Whatever a locked package needs on this machine is locked too, in a version that suits it."""
    missing = []
    for name in locked:
        for line in importlib.metadata.requires(name) or []:
            need = Requirement(line)
            if need.marker and not need.marker.evaluate({"extra": ""}):
                continue
            version = locked.get(canonicalize_name(need.name))
            if version is None or not need.specifier.contains(version, prereleases=True):
                missing.append(f"{name} needs {need}, the lock has {version}")
    assert missing == []


def test_the_lock_names_versions_and_nothing_else() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert pins
    odd = [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line)]
    assert odd == [], "no address, folder, local build or range belongs in the lock"
    names = [canonicalize_name(line.split("==")[0]) for line in pins]
    assert len(set(names)) == len(names)


def test_the_tests_run_on_the_locked_versions(locked: dict[str, Version]) -> None:
    differing = {}
    for name, version in locked.items():
        installed = Version(importlib.metadata.version(name))
        if installed.public != version.public:
            differing[name] = f"{installed}, not {version}"
    assert differing == {}


def test_the_installed_command_is_the_command_line(project: dict[str, Any]) -> None:
    module, function = project["project"]["scripts"]["sensorium"].split(":")
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    defined = {
        node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)
    }
    assert function in defined


def test_every_package_and_its_data_are_shipped(project: dict[str, Any]) -> None:
    """A package, recipe or template that is not listed would be missing from an installation."""
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for layer in LAYERS
        for path in (ROOT / layer).rglob("__init__.py")
    }
    settings = project["tool"]["setuptools"]
    assert set(settings["packages"]) == folders
    shipped = {
        path
        for package, patterns in settings["package-data"].items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    data = {
        path
        for layer in LAYERS
        for path in (ROOT / layer).rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    }
    assert data - shipped == set()


@pytest.mark.parametrize("target", ["demo", "test", "lint", "help"])
def test_make_knows_its_targets_and_help_lists_them(target: str) -> None:
    plan = subprocess.run(
        ["make", "--dry-run", "--silent", target], cwd=ROOT, capture_output=True, text=True
    )
    assert plan.returncode == 0, plan.stderr
    text = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True).stdout
    assert f"make {target}" in text


@pytest.mark.parametrize("package", ["features", "features/encoders", "training", "workflows"])
def test_the_readme_lists_every_module(package: str) -> None:
    readme, folder = ROOT / "README.md", ROOT / package
    found = folder.glob("*.py") if package == "features" else folder.rglob("*.py")
    names = {path.name for path in found if path.name != "__init__.py"}
    words = set(re.findall(r"[\w.]+", readme.read_text()))
    assert names - words == set(), "the README's file tree has one line per file"


def test_the_changelog_knows_this_version(project: dict[str, Any]) -> None:
    assert f"## [{project['project']['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_make_lets_python_keep_what_it_compiles() -> None:
    """Or each of Ray's processes compiles torch and pandas anew, in an image that sets this."""
    shown = subprocess.run(
        ["make", "--no-print-directory", "--eval", "shown:; @env", "shown"],
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "IN_THE_IMAGE": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    names = {line.partition("=")[0] for line in shown}
    assert "IN_THE_IMAGE" in names
    assert "PYTHONDONTWRITEBYTECODE" not in names
