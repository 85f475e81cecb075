"""What the tests of saved states share: a comparison to the bit."""

import numpy as np
import torch

from learnit_r8.state import kinds
from learnit_r8.state.tree import leaves


def first_difference(one, other):
    """The dotted key of the first leaf in which two states differ in structure, kind, shape or a bit; "" if none."""
    ones, others = dict(leaves(one)), dict(leaves(other))
    for key in [*ones, *others]:
        if key not in ones or key not in others or not _is_same(ones[key], others[key]):
            return key
    return ""


def _is_same(one, other):
    if type(one) is not type(other):
        return False
    if kinds.is_tensor(one):
        return _is_same_tensor(one, other)
    if hasattr(one, "__array__") and hasattr(one, "dtype"):
        one, other = np.asarray(one), np.asarray(other)
        return bool((one.dtype, one.shape) == (other.dtype, other.shape) and one.tobytes() == other.tobytes())
    return one.hex() == other.hex() if isinstance(one, float) else bool(one == other)


def _is_same_tensor(one, other):
    kind = kinds.kind_of(one)
    if (kind, one.dtype, one.layout) != (kinds.kind_of(other), other.dtype, other.layout):
        return False
    if kind == "dense":
        bits = kinds.bits_of(kinds.dense(one)), kinds.bits_of(kinds.dense(other))
        return bool(one.shape == other.shape and torch.equal(*bits))
    (about, parts), (others, other_parts) = kinds.parts_of(one, kind), kinds.parts_of(other, kind)
    return about == others and len(parts) == len(other_parts) and all(map(_is_same_tensor, parts, other_parts))
