"""Gumbel noise on the CPU: softmax of float32 rows, with the digits of p and of 1 − p, one fused kernel for each pass.

With e_j = exp((z_j − z_max) / σ) and s the sum of the rivals' e_j, log p_y = −log1p(s / e_y), which near 1 has the digits of
1 − p. Exponentials are float32, sums float64.
"""

from __future__ import annotations

import numpy as np

from lossmith.engine.argmax.kernels.cells import INFINITY, MINUS_INFINITY, clear, extremes, number, sum_of
from lossmith.engine.argmax.kernels.cpu import (
    EXPONENT_BIAS,
    LEAST_EXPONENT,
    MANTISSA_BITS,
    exact,
    exp_parts,
)
from lossmith.engine.runtime.compiled import jit
from lossmith.engine.runtime.simd import float_of


@exact
def _exp_of_leads(scores, first, count, top, inverse, out, at):
    """out = exp((score − top) · inverse), 0 below e^−86."""
    i, k = np.uint64(first), np.uint64(at)
    for j in range(np.uint64(0), np.uint64(count)):
        x = (scores[i + j] - top) * inverse
        y = max(x, LEAST_EXPONENT)
        p, n = exp_parts(y)
        p *= float_of((np.int32(n) + EXPONENT_BIAS) << MANTISSA_BITS)
        out[k + j] = p if x > LEAST_EXPONENT else np.float32(0)


@jit
def _multiply(x, first, last, factor):
    for j in range(np.uint64(first), np.uint64(last)):
        x[j] *= factor


@jit
def target_rows(scores, bits, target, scale, ignored, C, log_p, grad, differentiate, first_row, last_row):
    """Rows first_row … last_row: log p of the target and its gradient in the scores.

    Args:
        scores: (B · C,) float32. bits: the same as int32.
        target: (B,) int64. ignored: the target of a row that is not looked at.
        scale: (B,) or (1,) float32.
        log_p: (B,) float32, written to.
        grad: (B · C,) float32, written to; (C,) of scratch without ``differentiate``.

    Returns:
        Whether a row is bad: it holds NaN, +inf or nothing but −inf, or its target is no class.
    """
    bad = False
    for b in range(first_row, last_row):
        base, y = b * C, target[b]
        out = base if differentiate else 0
        if y == ignored:
            log_p[b] = 0.0
            if differentiate:
                clear(grad, out, out + C)
            continue
        high_key, low_key = extremes(bits, base, base + C)
        if y < 0 or y >= C or high_key >= INFINITY or low_key < MINUS_INFINITY or high_key == MINUS_INFINITY:
            bad = True
            continue
        inverse, top, own = 1.0 / float(scale[b if len(scale) > 1 else 0]), number(high_key), scores[base + y]
        _exp_of_leads(scores, base, C, top, np.float32(inverse), grad, out)
        rivals = sum_of(grad, out, out + y) + sum_of(grad, out + y + 1, out + C)
        lead, own_exp = (float(own) - float(top)) * inverse, float(grad[out + y])
        log_p[b] = -np.log1p(rivals) if lead == 0 else lead - np.log(rivals + own_exp)
        if differentiate:
            if own == -np.inf:
                clear(grad, out, out + C)
                continue
            _multiply(grad, out, out + C, np.float32(-inverse / (rivals + own_exp)))
            grad[out + y] = inverse * rivals / (rivals + own_exp)
    return bad


@jit
def all_rows(scores, bits, scale, C, log_p, first_row, last_row):
    """Rows first_row … last_row: log p of every class, (B · C,). Returns whether a row is bad."""
    bad = False
    for b in range(first_row, last_row):
        base = b * C
        high_key, low_key = extremes(bits, base, base + C)
        if high_key >= INFINITY or low_key < MINUS_INFINITY or high_key == MINUS_INFINITY:
            bad = True
            continue
        inverse, top = 1.0 / float(scale[b if len(scale) > 1 else 0]), number(high_key)
        _exp_of_leads(scores, base, C, top, np.float32(inverse), log_p, base)
        leader = _leader(scores, base, C, top)
        rivals = sum_of(log_p, base, base + leader) + sum_of(log_p, base + leader + 1, base + C)
        log_sum = np.log1p(rivals)
        _leads_less(scores, base, C, top, inverse, log_sum, log_p)
        log_p[base + leader] = -log_sum
    return bad


@jit
def _leader(scores, first, count, top):
    """The last place of the highest score."""
    start, found = np.uint64(first), np.int64(0)
    for j in range(np.uint64(0), np.uint64(count)):
        found = np.int64(j) if scores[start + j] == top else found
    return found


@exact
def _leads_less(scores, first, count, top, inverse, log_sum, out):
    start = np.uint64(first)
    for j in range(np.uint64(0), np.uint64(count)):
        out[start + j] = np.float32((float(scores[start + j]) - float(top)) * inverse - log_sum)


@jit
def all_rows_gradient(log_p, scale, upstream, C, grad, first_row, last_row):
    """Rows first_row … last_row of Σ_k upstream_k log p_k differentiated in the scores: (upstream − p Σ upstream) / σ."""
    for b in range(first_row, last_row):
        base = b * C
        inverse = 1.0 / float(scale[b if len(scale) > 1 else 0])
        total = sum_of(upstream, base, base + C)
        _exp_of_leads(log_p, base, C, np.float32(0), np.float32(1), grad, base)
        _less_multiple(upstream, base, C, np.float32(total), np.float32(inverse), grad)


@jit
def _less_multiple(upstream, first, count, total, inverse, grad):
    """grad = (upstream − grad · total) · inverse."""
    start = np.uint64(first)
    for j in range(np.uint64(0), np.uint64(count)):
        i = start + j
        grad[i] = (upstream[i] - grad[i] * total) * inverse
