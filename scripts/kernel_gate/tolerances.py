"""How far a result may be from the exact one."""

import torch

# In sums of absolute values of an element's terms: the two types that hold the sums lose a few
# last places, the short ones half of their last place (and a little of the sum's) when they are
# stored.
TOLERANCES = {
    torch.float64: 1e-13,
    torch.float32: 2e-6,
    torch.bfloat16: 1.02 * 2**-8,
    torch.float16: 1.02 * 2**-11,
}
# Smaller sums than float16's least normal number are not held to a relative error.
LEAST_SUM = 2**-14
