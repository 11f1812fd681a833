"""``histotl check``: is every file under its final name what it says?"""

from __future__ import annotations

from pathlib import Path

from histotl.cli._console import EXIT_OK, EXIT_SOME_FAILED, err, out, print_json
from histotl.core.errors import UsageError


def check(folder: Path, /, *, repair: bool = False, fast: bool = False, json: bool = False) -> int:
    """Verify every embeddings file: schema, completeness, digest.

    Args:
        folder: Output folder of embed, or any folder above embeddings files.
        repair: Remove bad files and what dead processes left, so that the next run of embed makes them anew. Readable
            files of other tools are kept.
        fast: Leave the digests out; sees missing and cut-off files, not flipped bits.
        json: Print JSON.
    """
    from histotl.store.embeddings import check_file
    from histotl.store.layout import embeddings_files, remove_stale_parts
    from histotl.store.verify import is_foreign

    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", hint="give the output folder of histotl embed")
    files = embeddings_files(folder)
    bad = {str(path): problems for path in files if (problems := check_file(path, deep=not fast))}
    kept = [name for name in bad if is_foreign(Path(name))]
    if repair:
        for name in bad.keys() - set(kept):
            Path(name).unlink()
        remove_stale_parts(folder)
    if json:
        print_json({"files": len(files), "bad": bad, "repaired": repair, "of_other_tools": kept})
    else:
        for name, problems in bad.items():
            said = "; ".join(problems)
            err().print(f"bad: {said if name in said else f'{name}: {said}'}", markup=False, style="red")
        cure = " (removed; run embed again)" if repair else " (--repair removes them)"
        cure += f"; {len(kept)} of other tools, never removed" if kept else ""
        out().print(f"{len(files)} embeddings files, {len(bad)} bad{cure if bad else ''}", markup=False)
    return EXIT_SOME_FAILED if kept or (bad and not repair) else EXIT_OK
