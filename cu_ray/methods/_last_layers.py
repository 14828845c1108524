"""What EU-k and CF-k share: the choice of the last k layers."""

from __future__ import annotations

import itertools

from cu_ray.errors import FieldFault


def check_k(k: int | None, layers_per_block: tuple[int, ...]) -> None:
    """Raise FieldFault where no number of whole blocks at the output has k layers."""
    allowed = list(itertools.accumulate(reversed(layers_per_block)))
    if k is not None and k not in allowed:
        raise FieldFault("k", f"{k} is not allowed. Allowed for this model: {', '.join(map(str, allowed))}, or null for all.")
