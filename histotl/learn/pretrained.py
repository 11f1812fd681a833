"""A trained aggregator in one file, to start others from: weights, spec, tile statistics, and what it was trained on.

The file is safetensors; its description is JSON in the header. Opening a stranger's file runs no code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from histotl.core.atomic import write_bytes
from histotl.core.errors import CorruptFileError, IdentityError, StoreError, UsageError
from histotl.core.registry import canonical, create
from histotl.core.values import FeatureIdentity
from histotl.learn.aggregators.base import Aggregator, Outputs
from histotl.learn.export_config import ExportConfig
from histotl.learn.folder import check_folder
from histotl.learn.model import Model, load_model
from histotl.learn.network import Network

AGGREGATOR_NAME = "aggregator.safetensors"
SCHEMA = 1
_KEY, _PREFIX = "histotl.aggregator", "aggregator."


@dataclass(frozen=True, kw_only=True, eq=False)
class Pretrained:
    """A trained aggregator.

    Args:
        spec: Of the aggregator.
        in_dim: Length of the feature vectors that it takes.
        outputs: (task name, outputs) of the tasks that it was trained for.
        identity: Of the features; None when the files did not say.
        tensors: Its weights, and ``mean`` and ``std`` of the tiles that it was trained on.
    """

    spec: str
    in_dim: int
    outputs: Outputs
    identity: FeatureIdentity | None
    tensors: Mapping[str, torch.Tensor]

    def check(self, identity: FeatureIdentity | None, dim: int) -> None:
        """Refuse features that it was not trained on.

        Raises:
            IdentityError: Another width, backbone, tiling, stain or number format; the message lists the differences.
        """
        if dim != self.in_dim:
            fact = f"the pretrained aggregator takes features {self.in_dim} wide, these are {dim}"
            raise IdentityError(fact, hint="give features of the same backbone")
        if (identity is None) != (self.identity is None):
            known = "these" if self.identity is None else "its own"
            fact = f"of the pretrained aggregator's features and these, only {known} say what they were made by"
            raise IdentityError(fact, hint="embed with histotl embed, as for its training")
        if identity is not None and self.identity is not None and identity != self.identity:
            lines = "; ".join(self.identity.differences(identity))
            raise IdentityError(
                f"the aggregator was trained on other features: {lines}", hint="embed as for its training"
            )

    def check_tasks(self, outputs: Outputs) -> None:
        """Refuse tasks that it cannot be used for.

        Args:
            outputs: (task name, outputs) of the tasks to be trained.

        Raises:
            UsageError: It answers for tasks itself, and these are others.
        """
        if self.is_bound() and outputs != self.outputs:
            shown = ", ".join(f"{name} ({n})" for name, n in self.outputs)
            cure = (
                "train the same tasks in the same order, or start from an aggregator that gives vectors, such as abmil"
            )
            raise UsageError(f"the pretrained {self.spec} has weights for its own tasks: {shown}", hint=cure)

    def put(self, network: Network) -> None:
        """Copy weights and tile statistics into a network with the same aggregator.

        Raises:
            UsageError: See :meth:`check_tasks`.
        """
        heads = zip(network.names, network.heads, strict=True)
        self.check_tasks(tuple((name, len(head.get_parameter("bias"))) for name, head in heads))
        for name in ("mean", "std"):
            network.get_buffer(name).copy_(self.tensors[name])
        own = {n.removeprefix(_PREFIX): v for n, v in self.tensors.items() if n.startswith(_PREFIX)}
        cast("torch.nn.Module", network.aggregator).load_state_dict(own)

    def is_bound(self) -> bool:
        """Whether its weights are those of its tasks: with one task more it would have others."""
        shapes = []
        for outputs in (self.outputs, (*self.outputs, ("another", 1))):
            module = cast("Any", _maker(self.spec).build(self.in_dim, outputs))
            shapes.append({name: value.shape for name, value in module.state_dict().items()})
        return shapes[0] != shapes[1]


def save_aggregator(model: Model, path: Path | str, *, member: int = 0) -> Path:
    """Write the aggregator of one member of a trained model.

    Args:
        model: From :func:`histotl.learn.model.load_model`.
        path: The file, such as ``abmil.safetensors``.
        member: Which; members are trained from different seeds.

    Returns:
        The file.

    Raises:
        UsageError: Its aggregator has nothing trained, or there is no such member.
    """
    if not 0 <= member < len(model.members):
        raise UsageError(f"member {member} of {len(model.members)}", hint=f"give 0 to {len(model.members) - 1}")
    network, shapes = model.members[member], model.architecture
    if network.pools_first:
        fact = f"the model's aggregator {shapes.aggregator or 'none'!r} has no trained weights"
        raise UsageError(fact, hint="train with one that has, such as --aggregator abmil")
    names = {"mean", "std"}
    tensors = {n: v.detach().cpu() for n, v in network.state_dict().items() if n in names or n.startswith(_PREFIX)}
    about = {
        "schema": SCHEMA,
        "spec": canonical(create("aggregator", shapes.aggregator)),
        "in_dim": shapes.in_dim,
        "outputs": shapes.outputs,
        "identity": None if model.identity is None else asdict(model.identity),
    }
    write_bytes(Path(path), save({n: v.contiguous() for n, v in tensors.items()}, metadata={_KEY: json.dumps(about)}))
    return Path(path)


def export_aggregator(model: Path | str, out: Path | str, *, config: ExportConfig | None = None) -> Path:
    """Write ``aggregator.safetensors`` into a folder, from a model folder.

    Args:
        model: What `histotl train` wrote.
        out: The folder, made as needed; an older file in it is replaced.
        config: Which of its networks.

    Returns:
        The file.

    Raises:
        StoreError: No model folder, or a damaged one.
        UsageError: As :func:`save_aggregator` raises it.
    """
    out = Path(out)
    check_folder(out)
    return save_aggregator(load_model(model), out / AGGREGATOR_NAME, member=(config or ExportConfig()).member)


def load_aggregator(path: Path | str) -> Pretrained:
    """Read what :func:`save_aggregator` wrote.

    Raises:
        StoreError: There is no such file, or it is none of these.
        CorruptFileError: It is damaged.
    """
    cure = "give a file that `histotl export` wrote"
    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}", hint=cure) from error
    except SafetensorError as error:
        raise CorruptFileError(f"{path} is no whole safetensors file: {error}", hint=cure) from error
    if text is None:
        raise StoreError(f"{path} holds no aggregator of histotl", hint=cure)
    try:
        about = json.loads(text)
        if about["schema"] != SCHEMA:
            fact = f"{path} has aggregator schema {about['schema']}, this version reads {SCHEMA}"
            raise StoreError(fact, hint="save it again with this version")
        return Pretrained(
            spec=str(about["spec"]),
            in_dim=int(about["in_dim"]),
            outputs=tuple((str(name), int(n)) for name, n in about["outputs"]),
            identity=None if about["identity"] is None else FeatureIdentity(**about["identity"]),
            tensors=tensors,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"the description in {path} cannot be read: {error}", hint=cure) from error


def choose_aggregator(spec: str, default: str, pretrained: Pretrained | None) -> str:
    """The spec to train: the pretrained one's where there is one.

    Args:
        spec: What was asked for.
        default: What stands there when nothing was asked for.
        pretrained: What is started from.

    Raises:
        UsageError: Another was asked for as well.
    """
    if pretrained is None:
        return spec
    if spec not in ("", default) and canonical(create("aggregator", spec)) != pretrained.spec:
        fact = f"the pretrained aggregator is {pretrained.spec}, and --aggregator is {spec}"
        raise UsageError(fact, hint="drop --aggregator, or give the same")
    return pretrained.spec


def _maker(spec: str) -> Aggregator:
    return cast("Aggregator", create("aggregator", spec))
