"""The loops of ``loops`` as C functions of one pointer to a job (``engine.runtime.launch``), for any number of threads.

Each thread takes chunks of samples until none is left. The bounds of the chunks do not depend on the number of threads, and
every chunk has results of its own. ``loops`` defines the arrays in the slots; scores are float32 or float64.
"""

from __future__ import annotations

import numba
import numpy as np

from lossmith.engine.ranking.kernels.loops import (
    arrange,
    deposit,
    fading,
    read_off,
    spread,
    survey,
    windows,
)
from lossmith.engine.ranking.kernels.record import POWERS, SURVEY_NUMBERS, UNIFORM, WINDOW_NUMBERS
from lossmith.engine.runtime.compiled import jit, team_function
from lossmith.engine.runtime.launch import ARRAYS, NEXT, SLOTS, array, take

# Places of the numbers of a job, int64.
SCORES = 2  # how many samples there are; for ``scan_team`` how many directions
CHUNK = 3  # samples of a chunk
PANELS = 4  # panels of the lattice; 0 for noise with kinks
KIND = 5  # survey_team: 1 if the target is uint8, 0 if int64; scan_team: the kind of noise of ``record``
WIDE = 6  # 1 if the scores are float64, 0 if float32


@jit
def _next_chunk(job):
    """The next chunk: its number, its first sample and its last (exclusive), all int64; the number is −1 if none is left."""
    chunk = take(job.ctypes.data + 8 * NEXT, 1)
    first = chunk * job[CHUNK]
    if first >= job[SCORES]:
        return -1, 0, 0
    return chunk, first, min(first + job[CHUNK], job[SCORES])


@jit
def _samples(job):
    """Slots 0 to 3: the scores as float32 and as float64 (WIDE says which is right), side, weight and numbers."""
    single, double = array(job, 0, np.float32), array(job, 0, np.float64)
    return single, double, array(job, 1, np.uint8), array(job, 2, np.float64), array(job, 3, np.float64)


@team_function
def survey_team(data):
    """Slots: scores; side, the result; weight; target (n,) int64 or uint8; results (chunks · SURVEY_NUMBERS,) float64."""
    job = numba.carray(data, (ARRAYS + 5 * SLOTS,), np.int64)
    side, weight, results = array(job, 1, np.uint8), array(job, 2, np.float64), array(job, 4, np.float64)
    single, double = array(job, 0, np.float32), array(job, 0, np.float64)
    whole, byte = array(job, 3, np.int64), array(job, 3, np.uint8)
    while True:
        chunk, first, last = _next_chunk(job)
        if chunk < 0:
            return
        chunk_results = results[chunk * SURVEY_NUMBERS : (chunk + 1) * SURVEY_NUMBERS]
        if job[WIDE]:
            if job[KIND]:
                survey(double, byte, weight, side, chunk_results, first, last)
            else:
                survey(double, whole, weight, side, chunk_results, first, last)
        elif job[KIND]:
            survey(single, byte, weight, side, chunk_results, first, last)
        else:
            survey(single, whole, weight, side, chunk_results, first, last)


@team_function
def deposit_team(data):
    """Slots: scores, side, weight, numbers; sums and fine, both (chunks · 2 · panels · POWERS,) float64, zeros on entry."""
    job = numba.carray(data, (ARRAYS + 6 * SLOTS,), np.int64)
    single, double, side, weight, numbers = _samples(job)
    sums, fine = array(job, 4, np.float64), array(job, 5, np.float64)
    panels = job[PANELS]
    size = 2 * panels * POWERS
    while True:
        chunk, first, last = _next_chunk(job)
        if chunk < 0:
            return
        own = sums[chunk * size : (chunk + 1) * size]
        work = fine[chunk * size : (chunk + 1) * size]
        if job[WIDE]:
            deposit(double, side, weight, numbers, panels, own, work, first, last)
        else:
            deposit(single, side, weight, numbers, panels, own, work, first, last)


@team_function
def read_off_team(data):
    """Slots: scores, side, weight, numbers, slopes, values; results by_score, by_weight, scale_sums.

    slopes, values: (2 · panels · POWERS,) float64; by_score: (n,) of the scores' dtype; by_weight: (n,) float64 or (0,);
    scale_sums: (chunks,) float64, what ``read_off`` returns for each chunk.
    """
    job = numba.carray(data, (ARRAYS + 9 * SLOTS,), np.int64)
    single, double, side, weight, numbers = _samples(job)
    slopes, values = array(job, 4, np.float64), array(job, 5, np.float64)
    by_weight, scale_sums = array(job, 7, np.float64), array(job, 8, np.float64)
    by_single, by_double = array(job, 6, np.float32), array(job, 6, np.float64)
    n = job[PANELS]
    while True:
        chunk, first, last = _next_chunk(job)
        if chunk < 0:
            return
        if job[WIDE]:
            scale_sums[chunk] = read_off(double, side, weight, numbers, n, slopes, values, by_double, by_weight, first, last)
        else:
            scale_sums[chunk] = read_off(single, side, weight, numbers, n, slopes, values, by_single, by_weight, first, last)


@team_function
def arrange_team(data):
    """Slots: scores, side, weight, numbers, order; results x, sorted_side, sorted_weight."""
    job = numba.carray(data, (ARRAYS + 8 * SLOTS,), np.int64)
    single, double, side, weight, numbers = _samples(job)
    order, x = array(job, 4, np.int64), array(job, 5, np.float64)
    sorted_side, sorted_weight = array(job, 6, np.uint8), array(job, 7, np.float64)
    while True:
        chunk, first, last = _next_chunk(job)
        if chunk < 0:
            return
        if job[WIDE]:
            arrange(double, side, weight, numbers, order, x, sorted_side, sorted_weight, first, last)
        else:
            arrange(single, side, weight, numbers, order, x, sorted_side, sorted_weight, first, last)


@team_function
def scan_team(data):
    """One "chunk" is one direction. Slots: x, side, weight, sorted; results wins, memory, slope, lost.

    wins: (directions,) float64; memory: (directions · WINDOW_NUMBERS,) float64, zeros on entry;
    slope, lost: (2 · n,) float64, or (0,) if no gradient is asked for.
    """
    job = numba.carray(data, (ARRAYS + 7 * SLOTS,), np.int64)
    x, side, weight = array(job, 0, np.float64), array(job, 1, np.uint8), array(job, 2, np.float64)
    results, memory = array(job, 3, np.float64), array(job, 4, np.float64)
    slope, lost = array(job, 5, np.float64), array(job, 6, np.float64)
    n, kind = len(x), job[KIND]
    while True:
        d, _, _ = _next_chunk(job)
        if d < 0:
            return
        m = memory[d * WINDOW_NUMBERS : (d + 1) * WINDOW_NUMBERS]
        s, o = slope[d * n : (d + 1) * n], lost[d * n : (d + 1) * n]
        if kind == UNIFORM:
            results[d] = windows(x, side, weight, d == 1, m, s, o)
        else:
            results[d] = fading(x, side, weight, d == 1, kind, s, o)


@team_function
def spread_team(data):
    """Slots: x, side, weight, sorted; order (n,) int64; slope, lost, factors; results by_score, by_weight, scale_sums.

    slope, lost: (2 · n,) float64 from ``scan_team``; factors: (4,) float64; the results are those of ``read_off_team``.
    """
    job = numba.carray(data, (ARRAYS + 10 * SLOTS,), np.int64)
    x, side, weight = array(job, 0, np.float64), array(job, 1, np.uint8), array(job, 2, np.float64)
    order, slope, lost = array(job, 3, np.int64), array(job, 4, np.float64), array(job, 5, np.float64)
    factors, by_weight, scale_sums = array(job, 6, np.float64), array(job, 8, np.float64), array(job, 9, np.float64)
    single, double = array(job, 7, np.float32), array(job, 7, np.float64)
    while True:
        chunk, first, last = _next_chunk(job)
        if chunk < 0:
            return
        if job[WIDE]:
            scale_sums[chunk] = spread(order, x, side, weight, slope, lost, factors, double, by_weight, first, last)
        else:
            scale_sums[chunk] = spread(order, x, side, weight, slope, lost, factors, single, by_weight, first, last)
