"""One registry for every kind of plug-in: a decorator, a folder scan and entry points.

A plug-in is a frozen dataclass in a file of its kind's folder:

    @register("stain", "grey")
    @dataclass(frozen=True, kw_only=True)
    class Grey:
        '''Luminance only; a control for colour shortcuts.'''
        strength: float = 1.0

That one file is all: the folder is scanned on first use, so ``histotl list``, the flags, :func:`create`, the contract
tests and provenance know it. Installed packages add theirs through the entry-point group ``histotl.<kind>``, whose
entries name a module or a registered class.

A class that gives other results than in an earlier release says so: ``version: ClassVar[int] = 2``. It stands in the
identity of what is made with it, so that nothing made by the older one passes for current.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.metadata
import os
import pkgutil
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import TypeVar

from histotl.core._literals import fit_literal
from histotl.core.errors import MissingDependencyError, SpecError, UnknownNameError
from histotl.core.spec import Spec, parse_spec, with_version

PLUGIN_FOLDERS: Mapping[str, str] = {
    "reader": "histotl.wsi.readers",
    "tissue": "histotl.wsi.tissue",
    "stain": "histotl.image.stain",
    "augment": "histotl.image.augment",
    "quality": "histotl.image.quality",
    "backbone": "histotl.backbones",
    "head": "histotl.learn.heads",
    "aggregator": "histotl.learn.aggregators",
    "sharing": "histotl.learn.sharing",
    "balancing": "histotl.learn.balancing",
    "optimizer": "histotl.learn.optimizers",
    "ood": "histotl.learn.ood",
    "explain": "histotl.learn.explain",
}
"""Kind of plug-in -> the package whose files are its plug-ins."""


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """One registered component.

    Args:
        kind: Key of :data:`PLUGIN_FOLDERS`.
        name: The name that users type.
        factory: The frozen dataclass.
        module: Where it was defined.
        family: The name takes a model after a slash (``timm/resnet50``), passed as the field ``model``.
    """

    kind: str
    name: str
    factory: type
    module: str
    family: bool = False

    @property
    def summary(self) -> str:
        """First line of the component's docstring."""
        return (self.factory.__doc__ or "").strip().split("\n")[0]

    @property
    def parameters(self) -> dict[str, object]:
        """Parameter names and their defaults; ``dataclasses.MISSING`` where one must be given."""
        return {f.name: _default(f) for f in dataclasses.fields(self.factory) if f.init}

    @property
    def version(self) -> int:
        """Of its algorithm: 1 where the class does not say another."""
        return int(getattr(self.factory, "version", 1))


C = TypeVar("C", bound=type)

_plugins: dict[str, dict[str, Plugin]] = {kind: {} for kind in PLUGIN_FOLDERS}
_unavailable: dict[str, dict[str, str]] = {kind: {} for kind in PLUGIN_FOLDERS}
_scanning = threading.RLock()
"""Several slides are opened at a time: no thread may take a folder that another is still importing for all there is."""

_scanned: dict[str, set[str]] = {kind: set() for kind in PLUGIN_FOLDERS}
_looked_at: dict[str, tuple[tuple[str, int], ...]] = {}
"""Kind -> the places as they were at the last scan, which takes 8 ms: plug-ins are listed for every slide."""


def register(kind: str, name: str, *, family: bool = False) -> Callable[[C], C]:
    """Class decorator that makes a frozen dataclass known as ``name`` among the plug-ins of ``kind``.

    Raises:
        SpecError: The class is no frozen dataclass, or the name is taken by another class.
    """
    _check_kind(kind)

    def add(cls: C) -> C:
        if not dataclasses.is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            cure = "put @dataclass(frozen=True, kw_only=True) below @register"
            raise SpecError(f"{kind} {name!r}: {cls.__name__} is not a frozen dataclass", hint=cure)
        known = _plugins[kind].get(name)
        if known is not None and (known.module, known.factory.__qualname__) != (cls.__module__, cls.__qualname__):
            raise SpecError(f"{kind} {name!r} is registered by {known.module} and {cls.__module__}", hint="rename one")
        _plugins[kind][name] = Plugin(kind=kind, name=name, factory=cls, module=cls.__module__, family=family)
        return cls

    return add


def available(kind: str) -> list[str]:
    """Names of all plug-ins of a kind, sorted."""
    _scan(kind)
    return sorted(_plugins[kind])


def unavailable(kind: str) -> dict[str, str]:
    """Plug-in files that could not be imported, with the reason (usually a missing library)."""
    _scan(kind)
    return dict(_unavailable[kind])


def plugin(kind: str, name: str) -> Plugin:
    """Look one plug-in up; ``name`` may be ``family/model``.

    Raises:
        UnknownNameError: No such name; the hint gives the nearest ones.
        MissingDependencyError: The plug-in's file is there but a library that it needs is not.
    """
    _check_kind(kind)
    # A scan looks through files and installed packages, and a run asks for the same few names at every slide.
    found = _known(kind, name) if _scanned[kind] else None
    if found is None:
        _scan(kind)
        found = _known(kind, name)
    if found is not None:
        return found
    stem = name.split("/", 1)[0]
    if stem in _unavailable[kind]:
        reason = _unavailable[kind][stem]
        raise MissingDependencyError(f"{kind} {name!r} cannot be used: {reason}", hint="install the missing library")
    near = difflib.get_close_matches(name, _plugins[kind], n=3, cutoff=0.5)
    cure = f"did you mean {' or '.join(near)}?" if near else f"one of: {', '.join(sorted(_plugins[kind]))}"
    raise UnknownNameError(f"no {kind} is called {name!r}", hint=cure)


def create(kind: str, spec: str | Spec) -> object:
    """Build the component that a spec string describes.

    Args:
        kind: Key of :data:`PLUGIN_FOLDERS`.
        spec: Such as ``"macenko(alpha=1.0)"`` or ``"timm/resnet50.a1_in1k"``.

    Raises:
        UnknownNameError: No such name.
        SpecError: Unreadable spec, unknown or missing argument, or a value of the wrong type.
    """
    parsed = parse_spec(spec) if isinstance(spec, str) else spec
    found = plugin(kind, parsed.name)
    args = dict(parsed.args)
    if found.family and "/" in parsed.name:
        args["model"] = parsed.name.split("/", 1)[1]
    known = {f.name: f for f in dataclasses.fields(found.factory) if f.init}
    for name in args:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            cure = f"did you mean {near[0]}?" if near else f"it takes: {', '.join(known) or 'no arguments'}"
            raise SpecError(f"{kind} {parsed.name!r} has no argument {name!r}", hint=cure)
    for name, field in known.items():
        if name not in args and _default(field) is dataclasses.MISSING:
            cure = f"{parsed.name}/NAME" if found.family and name == "model" else f"{parsed.name}({name}=…)"
            raise SpecError(f"{kind} {parsed.name!r} needs {name!r}", hint=f"write {cure}")
    typed = {k: fit_literal(found.factory, k, v, where=f"{kind} {parsed.name!r}") for k, v in args.items()}
    built: object = found.factory(**typed)
    return built


def canonical(component: object) -> str:
    """Spec string of a component with every argument written out, so that a changed default changes the text.

    ``create(kind, canonical(x)) == x`` for every registered component.

    Raises:
        SpecError: The object is of no registered class.
    """
    found = _plugin_of(component)
    args = {name: getattr(component, name) for name in found.parameters}
    name = found.name
    if found.family and "model" in args:
        name = f"{name}/{args.pop('model')}"
    return str(Spec(name, args))


def identified(component: object) -> str:
    """What identities hold of a component: :func:`canonical`, and the version of its algorithm.

    Raises:
        SpecError: The object is of no registered class.
    """
    return with_version(canonical(component), _plugin_of(component).version)


def _plugin_of(component: object) -> Plugin:
    for plugins in _plugins.values():
        for found in plugins.values():
            if type(component) is found.factory:
                return found
    raise SpecError(f"{type(component).__name__} is not a registered component", hint="decorate it with @register")


def _check_kind(kind: str) -> None:
    if kind not in PLUGIN_FOLDERS:
        near = difflib.get_close_matches(kind, PLUGIN_FOLDERS, n=1)
        cure = f"did you mean {near[0]}?" if near else f"one of: {', '.join(PLUGIN_FOLDERS)}"
        raise UnknownNameError(f"there is no kind of plug-in called {kind!r}", hint=cure)


def _known(kind: str, name: str) -> Plugin | None:
    """A plug-in that is registered already, or the family that ``family/model`` belongs to."""
    found = _plugins[kind].get(name)
    if found is None and "/" in name:
        found = _plugins[kind].get(name.split("/", 1)[0])
        found = found if found is not None and found.family else None
    return found


def _scan(kind: str) -> None:
    """Import every file of the kind's folder, and every entry point, once each."""
    _check_kind(kind)
    package = importlib.import_module(PLUGIN_FOLDERS[kind])
    places = _places(package.__path__)
    if _looked_at.get(kind) == places:
        return
    with _scanning:
        _import_all(kind, package, places)


def _import_all(kind: str, package: ModuleType, places: tuple[tuple[str, int], ...]) -> None:
    for entry in pkgutil.iter_modules(package.__path__):
        if not entry.name.startswith("_") and entry.name != "base" and entry.name not in _scanned[kind]:
            _scanned[kind].add(entry.name)
            _load(kind, entry.name, partial(importlib.import_module, f"{package.__name__}.{entry.name}"))
    for point in importlib.metadata.entry_points(group=f"histotl.{kind}"):
        key = f"{point.name}={point.value}"
        if key not in _scanned[kind]:
            _scanned[kind].add(key)
            _load(kind, point.name, point.load)
    _looked_at[kind] = places


def _places(package: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """Where plug-ins are looked for, and when something last came there or went."""
    found = []
    for folder in (*package, *sys.path):
        try:
            found.append((folder, os.stat(folder or ".").st_mtime_ns))  # noqa: PTH116 - asked for at every slide
        except OSError:
            continue
    return tuple(found)


def _load(kind: str, name: str, load: Callable[[], object]) -> None:
    try:
        load()
    except ImportError as error:
        # One missing optional library must not hide the other plug-ins of the folder.
        _unavailable[kind][name] = str(error)


def _default(field: dataclasses.Field[object]) -> object:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
