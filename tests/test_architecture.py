"""Who may import whom, what a no-op run must not load, and that nothing happens on import."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("features", "training", "workflows")
"""The packages, lowest first: each may import itself and those before it."""

ONLY_IN = {
    "ray": (
        "features/job.py",
        "training/job.py",
        "training/rounds.py",
        "workflows/cluster.py",
        "workflows/submit.py",  # another library in all but name: a client of the job server
    ),
    "mlflow": (
        "workflows/tracking.py",
        "workflows/scoring.py",
        "workflows/serving/signature.py",
        "workflows/serving/server.py",
    ),
    "transformers": ("features/encoders/*.py",),
    "pyarrow.fs": ("features/storage.py", "features/s3.py", "features/s3_storage.py"),
    "boto3": ("features/s3.py",),
    "botocore": ("features/s3.py",),
    "s3fs": ("features/storage.py",),
    "fsspec": ("features/storage.py",),
    "faiss": ("workflows/space/cells.py",),
}
"""Libraries that few files may know, and those files."""

TORCH_ALONE = tuple(
    f"training.{name}"
    for name in [
        "batch",
        "workers",
        "models.layers",
        "models.attention",
        "models.fusion",
        "models.late",
        "models.ensemble",
        "models.gated",
        "models.low_rank",
        "models.co_attention",
        "models.cross_modal",
        "models.bottleneck",
        "models.alignment",
        "models.probed",
        "models.shared_space",
        "models.correlation",
        "models.translation",
        "losses.task",
        "losses.contrastive",
        "losses.log_sum_exp",
        "losses.positives",
        "losses.sigmoid",
        "models.grad_cache",
        "evaluation.resampling",
        "evaluation.ranks",
        "evaluation.retrieval",
    ]
)
"""The mathematics: nothing but torch, NumPy, the standard library and each other."""

HEAVY = ("torch", "ray", "mlflow", "transformers", "matplotlib", "skimage", "sklearn")
"""What a run with nothing to do has no time to load."""

EMPTY_NAMES = {"utils", "util", "helpers", "helper", "manager", "misc", "common"}


def files() -> list[Path]:
    return sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str, *, module: str, is_package: bool = False) -> set[str]:
    """Dotted names that a source imports anywhere, functions and type checking included.

    `from a import b` gives both `a` and `a.b`, since `b` may be a module.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, *([base] if base else [])])
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            found.update(_import_by_name(node))
    return found


def _import_by_name(call: ast.Call) -> list[str]:
    match call:
        case ast.Call(
            func=ast.Name(function) | ast.Attribute(attr=function),
            args=[ast.Constant(str(name)), *_],
        ) if function in {"import_module", "import_extra", "__import__"}:
            return [name]
    return []


@cache
def imports_in(path: Path) -> frozenset[str]:
    return frozenset(
        imports_of(path.read_text(), module=module_of(path), is_package=path.name == "__init__.py")
    )


def is_within(name: str, library: str) -> bool:
    return name == library or name.startswith(f"{library}.")


def parameters(paths: Iterable[Path]) -> list[object]:
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in paths]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f():\n    import ray.data", "ray.data"),
        ("from pyarrow import fs", "pyarrow.fs"),
        ("if TYPE_CHECKING:\n    from mlflow.entities import Run", "mlflow.entities"),
        ("from .encoders import text", "features.encoders.text"),
        ("from . import job", "features.job"),
        ("importlib.import_module('ray.train')", "ray.train"),
        ("import_extra('transformers', extra='text')", "transformers"),
    ],
)
def test_an_import_is_seen_wherever_it_stands(source: str, expected: str) -> None:
    found = imports_of(source, module="features.store")
    assert expected in found


@pytest.mark.parametrize("path", parameters(files()))
def test_no_layer_imports_one_above_it(path: Path) -> None:
    layer = LAYERS.index(path.relative_to(ROOT).parts[0])
    above = [name for name in imports_in(path) if name.split(".")[0] in LAYERS[layer + 1 :]]
    assert not above, f"{LAYERS[layer]} may not import {', '.join(sorted(above))}"


def test_the_folders_of_training_import_each_other_in_one_direction() -> None:
    names = {path.name for path in (ROOT / "training").iterdir() if path.is_dir()}
    below: dict[str, set[str]] = {name: set() for name in sorted(names - {"__pycache__"})}
    for path in files():
        parts = module_of(path).split(".")
        if parts[0] == "training" and parts[1:] and parts[1] in below:
            known = {name.split(".")[1] for name in imports_in(path) if name.count(".") > 1}
            below[parts[1]] |= known & (set(below) - {parts[1]})
    assert below["models"] == {"losses"}
    while free := [name for name in below if not below[name]]:
        below = {name: known - {*free} for name, known in below.items() if name not in free}
    assert not below, "a circle: each of these imports another of them"


REFERENCE = re.compile(r"`((?:features|training|workflows)(?:\.\w+)+)`")


@pytest.mark.parametrize("path", parameters(p for p in files() if REFERENCE.search(p.read_text())))
def test_what_a_docstring_refers_to_is_there(path: Path) -> None:
    modules = {module_of(path) for path in files()}
    for name in set(REFERENCE.findall(path.read_text())):
        parts = name.split(".")
        known = [i for i in range(1, len(parts) + 1) if ".".join(parts[:i]) in modules]
        assert known, name
        module = ROOT.joinpath(*parts[: known[-1]])
        source = module.with_suffix(".py")
        if module.is_dir():
            # `training.monitor` is a field of the YAML.
            fields = len(parts) == 2 and parts[0] == "training"
            source = module / ("training_spec.py" if fields else "__init__.py")
        for part in parts[known[-1] :]:
            assert re.search(rf"\b{part}\b", source.read_text()), f"{name} is not in {source}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_known_to_few_files(library: str) -> None:
    strangers = [
        str(path.relative_to(ROOT))
        for path in files()
        if any(is_within(name, library) for name in imports_in(path))
        and not any(path.relative_to(ROOT).match(allowed) for allowed in ONLY_IN[library])
    ]
    assert not strangers, f"{library} belongs in {', '.join(ONLY_IN[library])} only"


@pytest.mark.parametrize("path", parameters(p for p in files() if module_of(p) in TORCH_ALONE))
def test_the_mathematics_know_torch_alone(path: Path) -> None:
    others = {
        name
        for name in imports_in(path)
        if name.split(".")[0] not in sys.stdlib_module_names
        and not any(is_within(name, allowed) for allowed in ("torch", "numpy", *TORCH_ALONE))
        and not (name == "training" or name.rpartition(".")[0] in TORCH_ALONE)
    }
    assert not others


@pytest.mark.parametrize("path", parameters(p for p in files() if "encoders" in p.parts))
def test_reading_encoding_and_writing_are_strangers(path: Path) -> None:
    known = {name for name in imports_in(path) if is_within(name, "features")}
    allowed = ("features.encoders", "features.fingerprint", "features.by_name")
    strangers = {
        name
        for name in known
        if name != "features" and not any(is_within(name, a) for a in allowed)
    }
    assert not strangers, "an encoder knows its base and fingerprints; it is given its payloads"


def test_every_file_has_a_name_that_says_what_is_in_it() -> None:
    empty = [str(p) for folder in (*LAYERS, "tests") for p in (ROOT / folder).rglob("*.py")]
    assert empty, "the search is broken: there are no files at all"
    assert not [path for path in empty if Path(path).stem in EMPTY_NAMES]


def run_python(script: str, *arguments: str, cwd: Path, path: Path = ROOT) -> str:
    """Standard output of a fresh Python whose working folder and home are `cwd`."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *arguments],
        cwd=cwd,
        env={
            **os.environ,
            "HOME": str(cwd),
            "PYTHONPATH": str(path),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


LOADED_BY = """
import importlib, json, sys
modules, libraries = map(json.loads, sys.argv[1:])
guilty, seen = {}, set()
for module in modules:
    importlib.import_module(module)
    new = {library for library in libraries if library in sys.modules} - seen
    if new:
        guilty[module] = sorted(new)
    seen |= new
print(json.dumps(guilty))
"""


def loaded_by(modules: Iterable[str], libraries: Iterable[str], *, cwd: Path) -> dict[str, list]:
    """Which of the libraries each module, imported in turn, is the first to load."""
    arguments = (json.dumps(list(modules)), json.dumps(list(libraries)))
    return json.loads(run_python(LOADED_BY, *arguments, cwd=cwd))


def existing(*modules: str) -> list[str]:
    present = {module_of(path) for path in files()}
    return [module for module in modules if module in present]


def test_a_run_with_nothing_to_do_loads_no_heavy_library(tmp_path: Path) -> None:
    features = [module_of(path) for path in files() if module_of(path).startswith("features")]
    light = [
        *(module for module in features if module != "features.job"),
        *existing(
            "training.spec",
            "training.task",
            "training.evaluation.metrics",
            "training.evaluation.bootstrap",
        ),
        *existing("training.evaluation.bootstrap", "training.evaluation.significance"),
        *existing("workflows.pipeline", "workflows.promotion.gate", "workflows.cli"),
    ]
    assert loaded_by(light, HEAVY, cwd=tmp_path) == {}


def test_the_check_of_loaded_libraries_bites(tmp_path: Path) -> None:
    assert loaded_by(["json", "sklearn"], HEAVY, cwd=tmp_path) == {"sklearn": ["sklearn"]}


def test_encoders_load_and_encode_without_ray_or_mlflow(tmp_path: Path) -> None:
    script = """
import importlib, pkgutil, sys
import features.encoders
for module in pkgutil.iter_modules(features.encoders.__path__, "features.encoders."):
    importlib.import_module(module.name)
for spec in features.encoders.BUILT_IN.values():
    complete = all(not field.is_required() for field in spec.model_fields.values())
    if complete and not spec().needs_fit:
        spec().load()
        print("loaded", spec.__name__)
print([name for name in ("ray", "mlflow") if name in sys.modules])
"""
    *loaded, strangers = run_python(script, cwd=tmp_path).splitlines()
    assert len(loaded) >= 3, "the encoders without weights: one of text, of images, of sound"
    assert strangers == "[]"


WATCH = """
import importlib, json, os, sys, threading
root, modules = sys.argv[1], json.loads(sys.argv[2])
ours = tuple(os.path.join(root, module.split(".")[0]) for module in modules)
done = []

def is_an_act(event, arguments):
    if event == "open":
        return isinstance(arguments[1], str) and any(c in arguments[1] for c in "wax+")
    return event in {
        "os.mkdir", "os.rename", "os.remove", "os.link", "os.symlink", "os.putenv", "os.chdir",
        "os.system", "subprocess.Popen", "os.posix_spawn", "os.fork", "socket.connect",
        "socket.bind", "Thread.start", "signal.signal", "sqlite3.connect",
    }

def watch(event, arguments):
    if not is_an_act(event, arguments):
        return
    # Ours, unless a library that is being imported stands between the act and our module.
    frame = sys._getframe(1)
    while frame and not frame.f_code.co_filename.startswith("<frozen importlib"):
        if frame.f_code.co_filename.startswith(ours):
            place = os.path.relpath(frame.f_code.co_filename, root)
            done.append(f"{place}:{frame.f_lineno} {event} {arguments!r:.80}")
            return
        frame = frame.f_back

def start(thread, _start=threading.Thread.start):
    watch("Thread.start", (thread.name,))  # Python 3.11 has no event for it
    _start(thread)

threading.Thread.start = start
sys.addaudithook(watch)
for module in modules:
    importlib.import_module(module)
print(json.dumps(done))
"""


def test_nothing_happens_on_import(tmp_path: Path) -> None:
    modules = [module_of(path) for path in files()]
    output = run_python(WATCH, str(ROOT), json.dumps(modules), cwd=tmp_path)
    assert output.count("\n") == 1, f"something is printed on import: {output}"
    assert json.loads(output) == []
    # Libraries may keep caches in hidden folders of the home; nobody else leaves anything.
    assert [entry.name for entry in tmp_path.iterdir() if not entry.name.startswith(".")] == []


@pytest.mark.parametrize(
    "act",
    [
        "open('made', 'w').close()",
        "import tempfile; tempfile.mkdtemp(dir='.')",
        "import threading; threading.Thread(target=int).start()",
        "import socket; socket.socket().bind(('127.0.0.1', 0))",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.environ['SOME_SETTING'] = '1'",
    ],
)
def test_the_watch_on_imports_bites(act: str, tmp_path: Path) -> None:
    (tmp_path / "acting.py").write_text(act)
    output = run_python(WATCH, str(tmp_path), '["acting"]', cwd=tmp_path, path=tmp_path)
    assert "acting.py:1" in output


def calls_on_import(source: str) -> Iterator[str]:
    """Calls made for their effect when a module is imported, but for those on its own names."""
    tree = ast.parse(source)
    own = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    } | {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    for node in tree.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            root: ast.expr = node.value
            while isinstance(root, ast.Call | ast.Attribute):
                root = root.func if isinstance(root, ast.Call) else root.value
            if not (isinstance(root, ast.Name) and root.id in own):
                yield ast.unparse(node)


@pytest.mark.parametrize("path", parameters(files()))
def test_no_global_is_set_on_import(path: Path) -> None:
    assert list(calls_on_import(path.read_text())) == []


def test_the_check_of_globals_bites() -> None:
    source = (
        "import torch\ntorch.set_num_threads(1)\napp = make()\napp.add(1)\nclass A: pass\nA.b()"
    )
    assert list(calls_on_import(source)) == ["torch.set_num_threads(1)"]
