"""Seeds that do not repeat: each from all that it must depend on."""

import numpy as np


def derive_seed(*parts: int) -> int:
    """One 63-bit seed from several non-negative numbers, each change of which changes it."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
