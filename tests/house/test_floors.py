"""The architecture, held by reading the source: floors, fences, one broad except, no prints, no asserts."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "histotl"

FLOORS = {
    "core": 0,
    **dict.fromkeys(("wsi", "image", "backbones", "store"), 1),
    **dict.fromkeys(("paint", "embed", "learn"), 2),
    "evaluate": 3,
    "cli": 4,
}

# Library -> the only places that may import it.
FENCES = {
    "openslide": ("wsi/", "cli/doctor.py"),
    "tifffile": ("wsi/",),
    "simplejpeg": ("wsi/", "image/augment/"),
    "cv2": ("wsi/", "image/_host.py"),
    "imagecodecs": ("wsi/",),
    "albumentations": ("image/augment/",),
    "triton": ("image/",),
    "timm": ("backbones/",),
    "openvino": ("backbones/",),
    "onnxruntime": ("backbones/",),
    "onnx": ("backbones/",),
    "h5py": ("store/",),
    "zarr": ("store/",),
    "cyclopts": ("cli/",),
    "rich": ("cli/",),
    "matplotlib": ("evaluate/",),
    "jinja2": ("evaluate/",),
}

FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "histotl" and len(parts) > 1 and parts[1] in FLOORS else None


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_every_room_has_a_floor() -> None:
    rooms = {p.name for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").is_file()}
    assert rooms == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_imports_only_from_lower_floors_or_its_own_room(path: Path) -> None:
    mine = path.relative_to(PACKAGE).parts[0]
    if mine not in FLOORS:
        return  # histotl/__init__.py names modules lazily
    for module in imports(path):
        theirs = room(module)
        if theirs is not None and theirs != mine:
            assert FLOORS[theirs] < FLOORS[mine], f"{name(path)} (floor {FLOORS[mine]}) imports {module}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_libraries_stay_behind_their_fences(path: Path) -> None:
    for module in imports(path):
        allowed = FENCES.get(module.split(".")[0])
        assert allowed is None or name(path).startswith(allowed), f"{name(path)} imports {module}"


def broad_handlers(path: Path) -> Iterator[int]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = {c.id for c in caught if isinstance(c, ast.Name)}
            if node.type is None or names & {"Exception", "BaseException"}:
                yield node.lineno


def test_one_broad_except_at_the_slide_boundary() -> None:
    found = [(name(path), line) for path in FILES for line in broad_handlers(path)]
    assert len(found) == 1, found
    assert found[0][0].startswith("embed/"), found


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_print_assert_eval_or_pickle(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.Assert), f"{name(path)}:{node.lineno}: assert vanishes under -O"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec"), f"{name(path)}:{node.lineno}"
            assert node.func.id != "print" or name(path).startswith("cli/"), f"{name(path)}:{node.lineno}: print"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pickle":
            assert node.attr == "UnpicklingError", f"{name(path)}:{node.lineno}: opening a stranger's file must be safe"
    assert not {m.split(".")[0] for m in imports(path)} & {"joblib", "dill", "cloudpickle"}, name(path)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_file_over_400_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
