"""``histotl list``: every plug-in, with its arguments."""

from __future__ import annotations

import dataclasses
import fnmatch

from histotl.cli._console import err, out, print_json, print_table
from histotl.core.registry import PLUGIN_FOLDERS, available, plugin, unavailable


def list_plugins(kind: str | None = None, pattern: str = "*", /, *, json: bool = False) -> int:
    """List the plug-ins, or those of one KIND whose names match a glob.

    Args:
        kind: reader, tissue, stain, augment, quality, backbone, head, aggregator, sharing, balancing, optimizer or ood;
            all when left out.
        pattern: Glob on the name; `timm/*resnet*` looks into a family of backbones.
        json: Print JSON.
    """
    rows = [row for each in ([kind] if kind else PLUGIN_FOLDERS) for row in _rows(each, pattern)]
    if json:
        print_json(rows)
        return 0
    if rows:
        print_table(["kind", "name", "what it is", "arguments"], [tuple(row.values()) for row in rows])
    else:
        out().print(f"nothing matches {pattern!r}", markup=False)
    for each in [kind] if kind else PLUGIN_FOLDERS:
        for name, reason in unavailable(each).items():
            err().print(f"not usable here: {each} {name}: {reason}; install the missing library", markup=False)
    return 0


def _rows(kind: str, pattern: str) -> list[dict[str, str]]:
    rows = []
    for name in available(kind):
        found = plugin(kind, name)
        models = getattr(found.factory, "models", None)
        if found.family and models is not None and "/" in pattern and fnmatch.fnmatch(name, pattern.split("/")[0]):
            names = models(pattern.split("/", 1)[1])
            rows += [{"kind": kind, "name": f"{name}/{m}", "summary": found.summary, "arguments": ""} for m in names]
        elif fnmatch.fnmatch(name, pattern):
            shown = f"{name}/NAME" if found.family else name
            arguments = ", ".join(
                _argument(k, v) for k, v in found.parameters.items() if not (found.family and k == "model")
            )
            rows.append({"kind": kind, "name": shown, "summary": found.summary, "arguments": arguments})
    return rows


def _argument(name: str, default: object) -> str:
    return name if default is dataclasses.MISSING else f"{name}={default!r}"
