"""What the kernels that integrate by panels (Laplace, Student's t, uniform, exponential) share: a row's start and its end.

The panels give p and 1 − p, and for every rival its slope Σ_q w_q r(u_q − x_j), r = f/F, w_q the integrand of p times the
weight of node q: minus the derivative of p in the rival's score. Numbers are float64, in scales from the strongest rival.
"""

from __future__ import annotations

import numpy as np

from lossmith.engine.argmax.kernels.cells import clear
from lossmith.engine.argmax.kernels.cpu import LARGEST_INVERSE
from lossmith.engine.argmax.kernels.double import extremes_but
from lossmith.engine.argmax.kernels.record import BAD, DONE, LOST, SURE, UNSERVED
from lossmith.engine.runtime.compiled import jit


@jit
def lead_of(scores, target, scale, ignored, C, b):
    """(status, strongest rival's score, lead of the target in scales, 1/scale) of row b.

    A row of status DONE is yet to be computed. SURE: it is ignored, or p is 1 whatever the noise, since there is no rival.
    """
    base, own = b * C, target[b]
    if own == ignored:
        return SURE, 0.0, 0.0, 0.0
    if own < 0 or own >= C:
        return BAD, 0.0, 0.0, 0.0
    top, _, strange = extremes_but(scores, base, base + C, base + own)
    z = scores[base + own]
    if strange or top == np.inf or z == np.inf or (top == -np.inf and z == -np.inf):
        return BAD, 0.0, 0.0, 0.0
    if z == -np.inf:
        return LOST, 0.0, 0.0, 0.0
    if top == -np.inf:
        return SURE, 0.0, 0.0, 0.0
    inverse = 1.0 / scale[b if len(scale) > 1 else 0]
    lead = (z - top) * inverse
    return DONE if inverse < LARGEST_INVERSE and abs(lead) < np.inf else UNSERVED, top, lead, inverse


@jit
def write_log_p(log_p, b, p, doubt):
    """From the smaller of p and ``doubt`` = 1 − p; returns p."""
    log_p[b] = np.log1p(-doubt) if doubt < p else np.log(p)
    return 1 - doubt if doubt < p else p


@jit
def write_gradient(grad, base, C, own, factor, slopes):
    """The gradient of log p: ``factor`` · slopes for the rivals, 0 in ``slopes`` for the target; all sum to 0."""
    rest = 0.0
    for j in range(C):
        found = factor * slopes[j]
        grad[base + j] = found
        rest += found
    grad[base + own] = -rest


@jit
def write_plain(status, log_p, grad, b, C):
    """Log p and gradient of a row that needs no integral; 0 for those that others compute."""
    log_p[b] = -np.inf if status == LOST else 0.0
    if len(grad) > 0:
        clear(grad, b * C, (b + 1) * C)
