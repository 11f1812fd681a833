"""Adding a plug-in is one new file and no other edit, for every kind; an installed package does it by entry point."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from histotl.core.provenance import Provenance
from histotl.core.registry import PLUGIN_FOLDERS, available, canonical, create, plugin

# One real, small implementation of each contract: what a contributor would write.
SOURCES = {
    "reader": """
        from pathlib import Path

        from histotl.core.errors import SlideOpenError

        @register("reader", "newcomer")
        @dataclass(frozen=True, kw_only=True)
        class Newcomer:
            '''Claims files of a format that nobody else knows.'''

            strength: float = 1.0
            priority: int = 1

            def claims(self, path: Path) -> bool:
                return path.suffix == ".newcomer"

            def open(self, path: Path):
                raise SlideOpenError(f"{path.name}: the newcomer reads nothing yet", hint="convert it to TIFF")
        """,
    "tissue": """
        @register("tissue", "newcomer")
        @dataclass(frozen=True, kw_only=True)
        class Newcomer:
            '''Everything darker than a threshold.'''

            strength: float = 1.0
            mpp: float = 8.0

            def segment(self, image, mpp):
                return image.mean(2) < 230 * self.strength
        """,
    "stain": """
        import torch

        from histotl.image.stain.base import pixels_of

        class Halved:
            state = {}

            def __call__(self, tiles, *, dtype=torch.uint8):
                return pixels_of(tiles / 2, dtype)

        @register("stain", "newcomer")
        @dataclass(frozen=True, kw_only=True)
        class Newcomer:
            '''Half as bright; a control.'''

            strength: float = 1.0
            needs_fit: bool = False

            def fit(self, sample):
                return Halved()
        """,
    "augment": """
        @register("augment", "newcomer")
        @dataclass(frozen=True, kw_only=True)
        class Newcomer:
            '''Mirrors every tile.'''

            strength: float = 1.0

            def __call__(self, tiles, seeds):
                return tiles.flip(2)
        """,
    "quality": """
        @register("quality", "newcomer")
        @dataclass(frozen=True, kw_only=True)
        class Newcomer:
            '''Mean level of green.'''

            strength: float = 1.0
            columns: ClassVar[tuple[str, ...]] = ("greenness",)

            def __call__(self, view):
                return view.green(2.0).mean((1, 2))[:, None] * self.strength
        """,
    "backbone": """
        from histotl.core.values import BackboneCard

        class Embedder:
            card = BackboneCard(name="newcomer", dim=3, pooling="mean", input_px=224, mean=(0,) * 3, std=(1,) * 3)

            def __call__(self, tiles):
                return tiles.float().mean((1, 2))

        @register("backbone", "newcomer")
        @dataclass(frozen=True, kw_only=True)
        class Newcomer:
            '''Mean colour.'''

            strength: float = 1.0

            def load(self, device):
                return Embedder()
        """,
    "head": """
        from typing import ClassVar

        import torch

        from histotl.learn.heads.base import Nature

        @register("head", "newcomer")
        @dataclass(frozen=True, kw_only=True)
        class Newcomer:
            '''Squared error on class probabilities.'''

            strength: float = 1.0

            nature: ClassVar[Nature] = Nature(answers="classes", least=2, most=None)

            def n_outputs(self, n_classes):
                return n_classes

            def row_losses(self, outputs, target, class_weight):
                wanted = torch.nn.functional.one_hot(target, outputs.shape[1])
                return ((self.probabilities(outputs) - wanted) ** 2).sum(1)

            def probabilities(self, outputs):
                return outputs.softmax(1)
        """,
    "aggregator": """
        import torch

        from histotl.learn.aggregators.base import Aggregated

        class First(torch.nn.Module):
            def __init__(self, in_dim):
                super().__init__()
                self.out_dim = in_dim

            def forward(self, x, offsets, coords=None):
                return Aggregated(bags=torch.stack([bag.amax(0) for bag in x.tensor_split(offsets[1:-1].cpu())]))

        @register("aggregator", "newcomer")
        @dataclass(frozen=True, kw_only=True)
        class Newcomer:
            '''Largest value of each feature.'''

            strength: float = 1.0

            def build(self, in_dim, outputs):
                return First(in_dim)
        """,
    "sharing": """
        import torch

        class Nothing(torch.nn.Module):
            def __init__(self, shape):
                super().__init__()
                self.out_dim, self.n_tasks = shape.width, shape.n_tasks

            def common(self, bags):
                return bags

            def own(self, common):
                return common.unbind(1) if common.ndim == 3 else [common] * self.n_tasks

            def penalty(self):
                return None

        @register("sharing", "newcomer")
        @dataclass(frozen=True, kw_only=True)
        class Newcomer:
            '''Nothing between bags and linear layers.'''

            strength: float = 1.0
            optimizer: ClassVar[str] = "adamw"

            def build(self, shape):
                return Nothing(shape)
        """,
    "balancing": """
        from histotl.learn.balancing.base import FromLosses

        @register("balancing", "newcomer")
        @dataclass(frozen=True, kw_only=True)
        class Newcomer:
            '''The plain sum.'''

            strength: float = 1.0

            def start(self, setting):
                return FromLosses(make=lambda losses: self.strength * sum(losses.values()))
        """,
    "optimizer": """
        class Steps:
            def __init__(self, run):
                self.run = run

            def step(self, batch):
                loss = self.run.balancer.backward(batch)
                self.run.descent.step()
                self.run.balancer.after_step(batch)
                return loss

        @register("optimizer", "newcomer")
        @dataclass(frozen=True, kw_only=True)
        class Newcomer:
            '''The plain step.'''

            strength: float = 1.0

            def start(self, run):
                return Steps(run)
        """,
    "ood": """
        @register("ood", "newcomer")
        @dataclass(frozen=True, kw_only=True)
        class Newcomer:
            '''Distance to the mean.'''

            strength: float = 1.0

            def fit(self, features, labels):
                return {"mean": features.float().mean(0)}

            def score(self, state, features):
                return (features.float() - state["mean"]).norm(dim=1)
        """,
    "explain": """
        @register("explain", "newcomer")
        @dataclass(frozen=True, kw_only=True)
        class Newcomer:
            '''How far a tile is from the mean tile.'''

            strength: float = 1.0
            signed: ClassVar[bool] = False

            def scores(self, question):
                far = (question.x - question.x.mean(0)).norm(dim=1, keepdim=True)
                return far.expand(-1, question.readout.shape[1])
        """,
}
HEAD = "from dataclasses import dataclass\nfrom typing import ClassVar\n\nfrom histotl.core.registry import register\n"

# Kind -> the flag of a verb that takes it by name. The rest are chosen by file, task kind or recipe.
FLAGS = {
    "tissue": ["tile", "--tissue"],
    "stain": ["embed", "--stain"],
    "backbone": ["embed", "--backbone"],
    "reader": ["tile", "--reader"],
}


def source(kind: str) -> str:
    return HEAD + textwrap.dedent(SOURCES[kind])


def test_there_is_an_example_for_every_kind() -> None:
    assert SOURCES.keys() == PLUGIN_FOLDERS.keys()


SCRIPT = """
import importlib, sys
from histotl.core.registry import PLUGIN_FOLDERS
kind, folder, argv = sys.argv[1], sys.argv[2], sys.argv[3:]
package = importlib.import_module(PLUGIN_FOLDERS[kind])
package.__path__.append(folder)  # the one file lies on the folder's path, as if dropped into it
from histotl.cli.main import call
sys.exit(call(argv))
"""


@pytest.mark.parametrize("kind", PLUGIN_FOLDERS)
def test_one_file_is_known_to_list(kind: str, tmp_path: Path) -> None:
    (tmp_path / "newcomer.py").write_text(source(kind))
    command = [sys.executable, "-c", SCRIPT, kind, str(tmp_path), "list", kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "newcomer" in done.stdout
    assert "strength=1.0" in done.stdout


@pytest.mark.parametrize("kind", FLAGS)
def test_one_file_is_known_to_the_command_line(kind: str, tmp_path: Path, painted_slide: Path) -> None:
    (tmp_path / "plug").mkdir()
    (tmp_path / "plug" / "newcomer.py").write_text(source(kind))
    verb, flag = FLAGS[kind]
    slide, out = str(painted_slide), str(tmp_path / "out")
    argv = [verb, slide, out, flag, "newcomer(strength=1.0)", "--quiet"]
    command = [sys.executable, "-c", SCRIPT, kind, str(tmp_path / "plug"), *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if kind == "reader":
        # It claims no TIFF, so naming it is answered by its own reason and not by "no such reader".
        assert done.returncode == 1
        assert "the newcomer reads nothing yet" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert "1 done" in done.stdout
    if kind in ("stain", "backbone"):
        from histotl.store.embeddings import open_embeddings
        from histotl.store.layout import find_features

        with open_embeddings(find_features(tmp_path / "out")[0]) as file:
            assert "newcomer" in file.identity.to_json()
            assert "newcomer" in file.provenance.to_json()


@pytest.mark.parametrize("kind", PLUGIN_FOLDERS)
def test_one_file_is_known_to_create_contracts_and_provenance(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"newcomer_{kind}.py").write_text(source(kind).replace('"newcomer"', f'"newcomer_{kind}"'))
    package = importlib.import_module(PLUGIN_FOLDERS[kind])
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    name = f"newcomer_{kind}"
    try:
        assert name in available(kind)
        built = create(kind, f"{name}(strength=2)")
        assert canonical(built).startswith(f"{name}(strength=2.0")
        assert create(kind, canonical(built)) == built
        assert name in Provenance.now(specs={kind: canonical(built)}).to_json()
        contracts = importlib.import_module("tests.contracts")
        assert name in contracts.names(kind), "the contract tests would not find it"
        contracts.CHECKS[kind](name)
    finally:
        forget(kind, name)


@pytest.mark.parametrize("kind", PLUGIN_FOLDERS)
def test_an_installed_package_adds_by_entry_point(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = f"histotl_extra_{kind}"
    (tmp_path / f"{module}.py").write_text(source(kind).replace('"newcomer"', f'"extra_{kind}"'))
    info = tmp_path / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[histotl.{kind}]\nextra = {module}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        assert f"extra_{kind}" in available(kind)
        assert inspect.getmodule(type(create(kind, f"extra_{kind}"))).__name__ == module
        assert plugin(kind, f"extra_{kind}").module == module
    finally:
        forget(kind, f"extra_{kind}")


def forget(kind: str, name: str) -> None:
    from histotl.core import registry

    registry._plugins[kind].pop(name, None)
    registry._scanned[kind] = {s for s in registry._scanned[kind] if name not in s and "histotl_extra" not in s}
    for module in [m for m in sys.modules if m.endswith((name, f"histotl_extra_{kind}"))]:
        del sys.modules[module]
