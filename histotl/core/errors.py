"""Every error that histotl raises on purpose.

    HistotlError
    ├── UsageError(ValueError)              the command or a value in it is wrong               exit 2
    │   ├── SpecError                       a spec string cannot be read
    │   ├── UnknownNameError(LookupError)   no plug-in of that name
    │   └── TableError                      a manifest or label table is wrong
    │       └── LeakageError                one patient in two splits
    ├── SlideError                          one slide cannot be used; the run goes on           exit 1
    │   ├── SlideOpenError(OSError)         no reader can open the file
    │   ├── SlideReadError(OSError)         it opened, but a region cannot be decoded
    │   ├── MppError(ValueError)            pixel size missing, implausible or anisotropic
    │   ├── UpsamplingError(ValueError)     finer pixels wanted than the slide has
    │   ├── NotBrightfieldError(ValueError) fluorescence or single channel
    │   ├── NoTissueError(ValueError)       nothing to embed was found
    │   └── StainError(ValueError)          the slide's stain cannot be estimated
    ├── StoreError(OSError)                 an embeddings file is missing, damaged or locked    exit 3
    │   ├── CorruptFileError
    │   └── LockedError
    ├── IdentityError(ValueError)           features of another backbone, tiling, stain or dtypeexit 2
    └── SetupError(RuntimeError)            this machine lacks something                        exit 3
        ├── MissingDependencyError(ImportError)
        └── WeightsError(OSError)           weights asked for and not to be had

Each also inherits the builtin that a caller would catch anyway.
"""

from __future__ import annotations


class HistotlError(Exception):
    """Base of all errors: a fact with the value seen, and the one thing to type or change.

    Args:
        message: What is wrong, naming the thing and the value.
        hint: The cure, in the imperative; empty when there is none.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Exception's own pickling drops keyword arguments; errors cross process borders.
        return _rebuild, (type(self), self.message, self.hint)


def _rebuild(kind: type[HistotlError], message: str, hint: str) -> HistotlError:
    return kind(message, hint=hint)


class UsageError(HistotlError, ValueError):
    """The command, or a value given to it, is wrong."""

    exit_code = 2


class SpecError(UsageError):
    """A spec string such as ``macenko(alpha=1.0)`` cannot be read or has a wrong argument."""


class UnknownNameError(UsageError, LookupError):
    """No plug-in is registered under the name."""


class TableError(UsageError):
    """A slide manifest or a label table is wrong."""


class LeakageError(TableError):
    """One patient stands in more than one split."""


class SlideError(HistotlError):
    """One slide cannot be used. The engine records it and goes on with the next."""


class SlideOpenError(SlideError, OSError):
    """No reader can open the file."""


class SlideReadError(SlideError, OSError):
    """The slide opened, but a region of it cannot be decoded."""


class MppError(SlideError, ValueError):
    """The pixel size is missing, implausible, or differs between x and y."""


class UpsamplingError(SlideError, ValueError):
    """Finer pixels were asked for than the slide has."""


class NotBrightfieldError(SlideError, ValueError):
    """The slide is not brightfield RGB (fluorescence, single channel)."""


class NoTissueError(SlideError, ValueError):
    """No tile passed the tissue threshold."""


class OutlineError(SlideError, ValueError):
    """The file that says where a slide's tissue is, is missing, damaged, or of another slide."""


class StainError(SlideError, ValueError):
    """The stain of a slide cannot be estimated (one stain only, or too little stained tissue)."""


class StoreError(HistotlError, OSError):
    """An embeddings file is missing, damaged or locked."""

    exit_code = 3


class CorruptFileError(StoreError):
    """A file with a final name does not hold what it says."""


class LockedError(StoreError):
    """Another live process is writing this file."""


class IdentityError(HistotlError, ValueError):
    """Features of another backbone, tiling, stain or number format than the ones expected."""

    exit_code = 2


class SetupError(HistotlError, RuntimeError):
    """This machine lacks something that the command needs."""

    exit_code = 3


class MissingDependencyError(SetupError, ImportError):
    """An optional library is not installed."""


class WeightsError(SetupError, OSError):
    """Weights were asked for and cannot be had (offline, gated, wrong token, wrong file)."""
