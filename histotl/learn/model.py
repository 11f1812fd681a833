"""The model folder: ``model.safetensors`` + ``model.json``. Opening a stranger's model runs no code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from histotl.core.atomic import write_bytes, write_text
from histotl.core.errors import CorruptFileError, IdentityError, StoreError
from histotl.core.provenance import file_digest
from histotl.core.values import FeatureIdentity
from histotl.learn._gate_file import pack_gate, unpack_gate
from histotl.learn.bags import Kind, Packed
from histotl.learn.calibrators import Calibration, Temperature, averaged
from histotl.learn.calibrators import from_dict as calibration_from_dict
from histotl.learn.calibrators import to_dict as calibration_to_dict
from histotl.learn.covariates import NO_COVARIATES, CovariateEncoder, encoder_from_list
from histotl.learn.decisions import Decision, decide, decision_from_dict
from histotl.learn.gate import Gate
from histotl.learn.heads.base import decoded
from histotl.learn.network import Architecture, Network, evaluating
from histotl.learn.objective import TaskFacts
from histotl.learn.task import Task, task_from_dict

WEIGHTS_NAME, META_NAME = "model.safetensors", "model.json"
SCHEMA, SCHEMA_WITH_OWN = 2, 3
"""A reader that knows nothing of tasks with networks of their own must not answer them with the others."""

_OWN_PREFIX = "own.{}."


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """Answers for B bags with N tiles in all.

    Args:
        tasks: Task name -> float64 (B, k) probabilities, or (B, 1 + extras): the number in units of the labels or the
            risk, and what the head adds to it.
        uncalibrated: The same of tasks with classes or labels, before calibration.
        weights: float64 (N,), each tile's share in its bag, mean over members, or (N, t) where tasks differ in it; None
            where there is no such thing.
    """

    tasks: dict[str, npt.NDArray[np.float64]]
    uncalibrated: dict[str, npt.NDArray[np.float64]]
    weights: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A trained model: averaged networks, calibration, gate, and what it was trained on.

    Args:
        tasks: What it predicts.
        level: ``tile``: answers for single rows; ``slide``: for bags.
        kind: What the training features were: ``slides`` or ``patches``.
        bag: Column that gathered patches into bags; empty for none.
        id_column: Name of the column of ids in tables made with it.
        identity: Of the features; None when the files did not say.
        architecture: Shapes of the networks.
        members: Networks in evaluation mode.
        facts: What training labels said of each task.
        calibrations: Task name -> what makes its probabilities come true.
        decisions: Task name -> its threshold, and the bound of its sets.
        gate: The out-of-distribution gate, or None.
        extra: Configuration, label counts, provenance: kept, not used.
        covariates: What it is told of a case beside the tiles.
        own: Task name -> a model of that task alone, whose networks answer it in place of ``members``. Calibration,
            decision and facts of the task are here as of any other.
    """

    tasks: tuple[Task, ...]
    level: Literal["tile", "slide"]
    kind: Kind
    bag: str
    id_column: str
    identity: FeatureIdentity | None
    architecture: Architecture
    members: tuple[Network, ...]
    facts: Mapping[str, TaskFacts]
    calibrations: Mapping[str, Calibration]
    decisions: Mapping[str, Decision]
    gate: Gate | None
    extra: Mapping[str, object]
    covariates: CovariateEncoder = NO_COVARIATES
    own: Mapping[str, Model] = field(default_factory=dict)

    def setting(self, name: str) -> object:
        """A field of the configuration that it was trained with; None when it is not known."""
        config = self.extra.get("config")
        return config.get(name) if isinstance(config, dict) else None

    def to(self, device: torch.device) -> Model:
        """Move the networks; the gate stays on the CPU."""
        own = {name: alone.to(device) for name, alone in self.own.items()}
        return replace(self, members=tuple(member.to(device) for member in self.members), own=own)

    def answering(self, task: str) -> Model:
        """The model whose networks answer a task: that of the task alone where there is one, else this."""
        return self.own.get(task, self)

    def outputs(self, packed: Packed) -> tuple[dict[str, list[torch.Tensor]], npt.NDArray[np.float64] | None]:
        """Raw outputs of every member on the CPU, and the mean weights of the tiles.

        Raises:
            UsageError: The model is told covariates, and nothing is known of these bags.
        """
        device = self.members[0].mean.device
        x, coords = packed.x.to(device), None if packed.coords is None else packed.coords.to(device)
        known = self._known(packed)
        with evaluating(*self.members):
            found = [member(x, packed.offsets, coords, known) for member in self.members]
            outputs = {task.name: [out.tasks[task.name].cpu() for out in found] for task in self.tasks}
            weights = [out.weights.double() for out in found if out.weights is not None]
            mean = np.asarray(torch.stack(weights).mean(dim=0).cpu().numpy()) if weights else None
        if mean is not None and mean.ndim == 2:
            # Tasks that only helped to learn have a column too.
            mean = mean[:, [self.members[0].names.index(task.name) for task in self.tasks]]
        return self._with_own(packed, outputs, mean)

    def _with_own(
        self, packed: Packed, outputs: dict[str, list[torch.Tensor]], weights: npt.NDArray[np.float64] | None
    ) -> tuple[dict[str, list[torch.Tensor]], npt.NDArray[np.float64] | None]:
        """The same, with what the networks of single tasks say of these."""
        if not self.own:
            return outputs, weights
        found = {name: alone.outputs(packed) for name, alone in self.own.items()}
        outputs = outputs | {name: raw[name] for name, (raw, _) in found.items()}
        if weights is None or any(own is None for _, own in found.values()):
            return outputs, None
        columns = {name: np.asarray(own).reshape(len(weights), -1)[:, 0] for name, (_, own) in found.items()}
        for place, task in enumerate(self.tasks):
            columns.setdefault(task.name, weights if weights.ndim == 1 else weights[:, place])
        return outputs, np.stack([columns[task.name] for task in self.tasks], axis=1)

    def _known(self, packed: Packed) -> torch.Tensor | None:
        """What is known of whatever gets an answer, as columns for the networks; None where they are told nothing."""
        columns = self.covariates.encode(packed.covariates)
        if columns is None:
            return None
        known = torch.from_numpy(columns)
        if self.level == "tile":
            known = known.repeat_interleave(torch.diff(packed.offsets), dim=0)
        return known.to(self.members[0].mean.device)

    def answer(self, packed: Packed) -> Answers:
        """Calibrated answers for packed bags of the model's own level."""
        outputs, weights = self.outputs(packed)
        plain = {task.name: averaged(task, outputs[task.name]) for task in self.tasks}
        found: dict[str, npt.NDArray[np.float64]] = {}
        for task in self.tasks:
            fact = self.facts[task.name]
            if task.classes:
                calibration = self.calibrations.get(task.name, Temperature())
                found[task.name] = calibration.probabilities(task, outputs[task.name])
            else:
                found[task.name] = decoded(task.head, plain.pop(task.name), fact)
        return Answers(tasks=found, uncalibrated=plain, weights=weights)

    def decide(self, task: Task, probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Class (n,) of calibrated probabilities (n, k), by the task's threshold if it has one."""
        return decide(task, probabilities, self.decisions.get(task.name))

    def check(self, identity: FeatureIdentity | None, dim: int) -> None:
        """Refuse features that the model was not trained on.

        Raises:
            IdentityError: Another backbone, tiling, stain or number format; the message lists the differences.
        """
        if (identity is None) != (self.identity is None):
            known, other = ("these", "the training") if self.identity is None else ("the training", "these")
            fact = f"{known} features say what they were made by, {other} features do not"
            raise IdentityError(fact, hint="embed with histotl embed, as for training")
        if identity is not None and self.identity is not None and identity != self.identity:
            lines = "; ".join(self.identity.differences(identity))
            raise IdentityError(f"the model was trained on other features: {lines}", hint="embed as for training")
        # Files of other tools carry no identity; their width is all that can be compared.
        if dim != self.architecture.in_dim:
            fact = f"the model was trained on features {self.architecture.in_dim} wide, these are {dim}"
            raise IdentityError(fact, hint="give features of the same backbone")


def save_model(model: Model, folder: Path) -> None:
    """Write the model; the description last, so that a folder with one is whole."""
    tensors, meta = _pack(model)
    data = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    write_bytes(folder / WEIGHTS_NAME, data)
    meta["weights_digest"] = file_digest(folder / WEIGHTS_NAME, whole=True)
    plain = json.loads(json.dumps(meta, default=str))
    write_text(folder / META_NAME, json.dumps(plain | {"digest": _digest(plain)}, indent=1, sort_keys=True) + "\n")


def _pack(model: Model) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """Tensors and description of a model."""
    tensors = {f"member.{i}.{n}": v for i, m in enumerate(model.members) for n, v in m.state_dict().items()}
    gate_meta: dict[str, object] | None = None
    if model.gate is not None:
        gate_meta, found = pack_gate(model.gate)
        tensors |= found
    meta: dict[str, object] = {
        **model.extra,
        "schema": SCHEMA_WITH_OWN if model.own else SCHEMA,
        "tasks": [task.to_dict() for task in model.tasks],
        "level": model.level,
        "kind": model.kind,
        "bag": model.bag,
        "id_column": model.id_column,
        "identity": None if model.identity is None else asdict(model.identity),
        "architecture": asdict(model.architecture),
        "members": len(model.members),
        "facts": {name: asdict(fact) for name, fact in model.facts.items()},
        "calibrations": {name: calibration_to_dict(found) for name, found in model.calibrations.items()},
        "decisions": {name: found.to_dict() for name, found in model.decisions.items()},
        "covariates": model.covariates.to_list(),
        "gate": gate_meta,
    }
    own: dict[str, object] = {}
    for number, (name, alone) in enumerate(sorted(model.own.items())):
        found, own[name] = _pack(alone)
        tensors |= {_OWN_PREFIX.format(number) + n: v for n, v in found.items()}
    return tensors, meta | ({"own": own} if own else {})


def load_model(folder: Path | str) -> Model:
    """Read a model folder.

    Raises:
        StoreError: It is no model folder.
        CorruptFileError: Its two files do not fit together.
    """
    folder = Path(folder)
    try:
        meta = json.loads((folder / META_NAME).read_text(encoding="utf-8"))
        data = (folder / WEIGHTS_NAME).read_bytes()
    except (OSError, ValueError) as error:
        raise StoreError(f"{folder} is no model folder: {error}", hint="give what `histotl train` wrote") from error
    if not isinstance(meta, dict):
        raise StoreError(f"{folder / META_NAME} describes no model", hint="give what `histotl train` wrote")
    if meta.get("schema") not in (SCHEMA, SCHEMA_WITH_OWN):
        fact = f"{folder} has model schema {meta.get('schema')}, this version reads {SCHEMA} and {SCHEMA_WITH_OWN}"
        raise StoreError(fact, hint="train again with this version")
    cure = "copy the folder again, or train again"
    if meta.get("weights_digest") != file_digest(folder / WEIGHTS_NAME, whole=True):
        raise CorruptFileError(f"{folder / WEIGHTS_NAME} is not the file that {META_NAME} describes", hint=cure)
    if meta.pop("digest", None) != _digest(meta):
        raise CorruptFileError(f"{folder / META_NAME} was changed after training", hint=cure)
    try:
        return _build(meta, load(data))
    except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise CorruptFileError(f"{folder} cannot be read: {error}", hint=cure) from error


def _digest(meta: Mapping[str, object]) -> str:
    """Seal of the description: an edited class list would give answers under wrong names."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()[:16]


def _build(meta: dict[str, object], tensors: dict[str, torch.Tensor]) -> Model:
    entry = cast("dict[str, dict[str, object]]", meta)
    shapes = entry["architecture"]
    outputs = tuple((str(name), int(n)) for name, n in cast("list[tuple[str, int]]", shapes["outputs"]))
    heads, recalls = (
        tuple((str(name), str(spec)) for name, spec in cast("list[tuple[str, str]]", shapes.get(key, [])))
        for key in ("heads", "recalls")
    )
    dropped = tuple(str(name) for name in cast("list[str]", shapes.get("dropped", [])))
    told = tuple(
        (str(name), str(fusion), int(n))
        for name, fusion, n in cast("list[tuple[str, str, int]]", shapes.get("covariates", []))
    )
    shapes.pop("adversaries", None)  # they are dropped before a model is saved
    fixed = {"outputs": outputs, "heads": heads, "recalls": recalls, "dropped": dropped, "covariates": told}
    architecture = Architecture(**shapes | fixed)  # type: ignore[arg-type]
    members = []
    for i in range(cast("int", meta["members"])):
        network = Network(architecture)
        prefix = f"member.{i}."
        network.load_state_dict({n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)})
        members.append(network.eval())
    facts = {name: _facts(fact) for name, fact in cast("dict[str, dict[str, object]]", meta["facts"]).items()}
    identity = None if meta["identity"] is None else FeatureIdentity(**entry["identity"])  # type: ignore[arg-type]
    known = ("tasks", "level", "kind", "bag", "id_column", "identity", "architecture", "members", "facts")
    own, apart = {}, cast("dict[str, dict[str, object]]", meta.get("own", {}))
    for number, (name, about) in enumerate(sorted(apart.items())):
        prefix = _OWN_PREFIX.format(number)
        own[name] = _build(about, {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)})
    used = {*known, "own", "calibrations", "decisions", "covariates", "gate", "schema", "weights_digest"}
    return Model(
        tasks=tuple(task_from_dict(task) for task in cast("list[dict[str, object]]", meta["tasks"])),
        level=cast("Literal['tile', 'slide']", meta["level"]),
        kind=cast("Kind", meta["kind"]),
        bag=str(meta["bag"]),
        id_column=str(meta["id_column"]),
        identity=identity,
        architecture=architecture,
        members=tuple(members),
        facts=facts,
        calibrations={n: calibration_from_dict(v) for n, v in _entries(meta, "calibrations")},
        decisions={n: decision_from_dict(v) for n, v in _entries(meta, "decisions")},
        gate=None if meta["gate"] is None else unpack_gate(entry["gate"], tensors),
        extra={name: value for name, value in meta.items() if name not in used},
        covariates=encoder_from_list(cast("list[dict[str, object]]", meta.get("covariates", []))),
        own=own,
    )


def _entries(meta: Mapping[str, object], name: str) -> Iterable[tuple[str, dict[str, object]]]:
    return cast("dict[str, dict[str, object]]", meta[name]).items()


def _facts(fact: dict[str, object]) -> TaskFacts:
    return TaskFacts(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in fact.items()},  # type: ignore[arg-type]
    )
