"""`sensorium check-encoder`: the page's template passes it, and what fails is told."""

from __future__ import annotations

import importlib
import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.workflows.command import sensorium

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "encoders.md").read_text()


@pytest.fixture
def template(tmp_path, monkeypatch):
    """The page's code in the file that it names, on the Python path."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    name = re.match(r"# (\w+)\.py\n", code)[1]
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path / f"{name}.py"
    sys.modules.pop(name, None)


def picture(folder, name, *, side=20):
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    (folder / name).write_bytes(buffer.getvalue())
    return name


def test_the_template_of_the_page_passes(template, capsys):
    (command,) = re.findall(r"\$ PYTHONPATH=\. sensorium (.*)", PAGE)
    code, out, err = sensorium(capsys, *command.split())
    assert (code, err) == (0, "")
    assert "14 checks passed" in out
    assert "built-in image samples" in out
    assert len(PAGE.splitlines()) < 90, "a page of one screen"


def test_the_template_on_files(template, capsys):
    a, b = picture(template.parent, "a.png"), picture(template.parent, "b.png", side=31)
    arguments = ["my_encoders.BrightnessSpec", "--samples", a, "--samples", b]
    code, out, _ = sensorium(capsys, "check-encoder", *arguments)
    assert code == 0
    assert "on 2 samples" in out


def test_what_fails_is_told_with_what_to_do(template, capsys):
    broken = template.read_text().replace("astype(np.float32)", "astype(np.float64)")
    template.write_text(broken)
    code, out, _ = sensorium(capsys, "check-encoder", "my_encoders.BrightnessSpec")
    words = " ".join(out.split())
    assert code == 1
    assert "failed the embedding of sample 0 is float64, not float32" in words
    assert "to do: float32 [B, dim]" in words
    assert "5 checks passed, 1 failed" in words


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["my_encoders.NoSpec"], "cannot be imported"),
        (["hgo"], "did you mean 'hog'"),
        (["hog", "--option", "sise=3"], "did you mean 'size'"),
        (["hog", "--option", "size=many"], "hog: size: Input should be a valid integer"),
        (["hog", "--option", "size=1"], "greater than or equal to 4"),
        (["hog", "--option", "size"], "write NAME=VALUE"),
        (["hog", "--option", "size=[1"], "the value is no YAML"),
        (["hog", "--samples", "nothing.png"], "--samples nothing.png: there is no such file"),
        (["hog", "--samples", "text.png"], "not an image of a known format"),
    ],
)
def test_wrong_arguments_are_bad_usage(template, capsys, arguments, says):
    (template.parent / "text.png").write_text("no image")
    code, out, err = sensorium(capsys, "check-encoder", *arguments)
    assert code == 2, out
    assert says in " ".join(err.split())


def test_nested_options_and_help(template, capsys):
    option = "image={type: hog, size: 16}"
    code, out, _ = sensorium(capsys, "check-encoder", "video_frames", "--option", option)
    assert code == 0 and "built-in video samples" in out
    code, out, _ = sensorium(capsys, "check-encoder", "--help")
    assert code == 0 and "check-encoder my_encoders.LengthSpec" in out


def test_records_are_a_list_in_json(template, capsys):
    (template.parent / "numbers.json").write_text("[1, 2]")
    template.write_text(
        template.read_text().replace('kind: ClassVar = "image"', 'kind: ClassVar = "table"')
    )
    arguments = ["check-encoder", "my_encoders.BrightnessSpec", "--samples"]
    code, _, err = sensorium(capsys, *arguments, "numbers.json")
    assert code == 2 and "a JSON list of objects" in " ".join(err.split())
