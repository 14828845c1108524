"""Every error cu-ray raises on purpose.

CuRayError
├── UserError        wrong use: one clear message, exit code 2, before any worker starts
│   ├── Faults       several of them, found in one file
│   └── FieldFault   one setting of a plug-in that does not fit the others or the data
├── RayStopped       Ray ended before the sweep was done: what is finished is in the ledger, exit code 1
├── SearchFailed     a sampler could not choose a study's next point, exit code 1
├── PlaceFailed      a URI could not be read or written (also an OSError)
├── StoreFailed      where originals are kept could not be read or written: no trial is to blame (also an OSError)
├── Diverged         training left the finite numbers: the trial's row says `diverged`
├── ContractBroken   a plug-in broke its contract: the trial's row says which rule
└── AssumptionFailed what a method takes for granted is not so here: the trial's row says what

TimeIsUp             a trial took longer than allowed; no Exception, so that a method's own `except Exception` does not stop it
LedgerDamaged        a warning: files of a ledger hold what is no record; all else in them is read
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_SHOWN = 50  # faults of one file
MOST_QUOTED = 300  # characters of what another library says


class CuRayError(Exception):
    """Base of all errors that cu-ray raises on purpose."""


class UserError(CuRayError):
    """Wrong use: the message says what was given, what is allowed and the nearest name."""


class Faults(UserError):
    """All faults of one file, a line each; in the message the first ones."""

    def __init__(self, source: str, faults: Iterable[str]) -> None:
        self.source, self.faults = source, list(faults)
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        more = [f"and {len(self.faults) - MOST_SHOWN} more"] if len(self.faults) > MOST_SHOWN else []
        super().__init__("\n  ".join([f"{source}: {count}", *self.faults[:MOST_SHOWN], *more]))


class FieldFault(UserError):
    """One setting of a plug-in does not fit its other settings or the data."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class RayStopped(CuRayError):
    """Ray ended before the sweep was done."""


class SearchFailed(CuRayError):
    """A sampler could not choose a study's next point."""


class PlaceFailed(CuRayError, OSError):
    """A URI could not be read or written."""


class StoreFailed(CuRayError, OSError):
    """Where original models and memos are kept could not be read or written: no trial is to blame."""


class OriginalMissing(CuRayError):
    """An original model is not in the store, and is not to be trained here."""


class Diverged(CuRayError):
    """Training produced a value that is not finite."""


class ContractBroken(CuRayError):
    """A plug-in broke a rule of its contract."""


class AssumptionFailed(CuRayError):
    """What a plug-in takes for granted of data, model or deletion set is not so: nothing is wrong with its code."""


class TimeIsUp(BaseException):
    """A trial took longer than runtime.trial_time_limit; the message is the whole reason. Raised at any place in the trial."""


class LedgerDamaged(UserWarning):
    """Files of a ledger hold what is no record: all else in them is read. On the terminal it is one line."""


def in_one_line(error: BaseException) -> str:
    """What an error of another library says, without a full stop, and the beginning of it where that is long."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    text = text if text.endswith("..") else text.removesuffix(".")
    return text if len(text) <= MOST_QUOTED else f"{text[:MOST_QUOTED]}..."


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """'Allowed: a, b, c. Did you mean 'b'?' for a name that is not among those allowed."""
    options = sorted(allowed)
    near = difflib.get_close_matches(given, options, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"Allowed: {', '.join(options) or 'nothing'}.{hint}"
