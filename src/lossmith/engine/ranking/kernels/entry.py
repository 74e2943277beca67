"""The loops of ``pair_loops`` as C functions of one pointer, to a job (``jobs``), which any number of threads may enter.

Each takes chunks of scores until none is left. Chunks have the same bounds on any number of threads, and results of their own.
The first slots are the scores, float32 or float64, the side of each (1 for winners), its weight, or nothing, and the numbers.
"""

from __future__ import annotations

import numba
import numpy as np

from lossmith.engine.ranking.kernels.loops import (
    FOUND,
    MOMENTS,
    POWERS,
    UNIFORM,
    arrange,
    deposit,
    fading,
    read_off,
    spread,
    survey,
    windows,
)
from lossmith.engine.runtime.compiled import jit, team_function
from lossmith.engine.runtime.launch import ARRAYS, NEXT, SLOTS, array, take

SCORES, CHUNK, PANELS, KIND, WIDE = 2, 3, 4, 5, 6  # numbers of a job; WIDE: scores are float64; else float32


@jit
def _turn(job):
    """The next chunk: its number and its first and last score, or −1."""
    chunk = take(job.ctypes.data + 8 * NEXT, 1)
    first = chunk * job[CHUNK]
    if first >= job[SCORES]:
        return -1, 0, 0
    return chunk, first, min(first + job[CHUNK], job[SCORES])


@team_function
def survey_team(data):
    """Slots: scores, side (to be made), weight, target, results (chunks, FOUND); the target is int64 or of bytes (KIND 1)."""
    job = numba.carray(data, (ARRAYS + 5 * SLOTS,), np.int64)
    side, weight, results = array(job, 1, np.uint8), array(job, 2, np.float64), array(job, 4, np.float64)
    single, double = array(job, 0, np.float32), array(job, 0, np.float64)
    whole, byte = array(job, 3, np.int64), array(job, 3, np.uint8)
    while True:
        chunk, first, last = _turn(job)
        if chunk < 0:
            return
        found = results[chunk * FOUND : (chunk + 1) * FOUND]
        if job[WIDE]:
            if job[KIND]:
                survey(double, byte, weight, side, found, first, last)
            else:
                survey(double, whole, weight, side, found, first, last)
        elif job[KIND]:
            survey(single, byte, weight, side, found, first, last)
        else:
            survey(single, whole, weight, side, found, first, last)


@team_function
def deposit_team(data):
    """Slots: …, sums (chunks, 2 · panels · POWERS), as many to work in; PANELS in the job."""
    job = numba.carray(data, (ARRAYS + 6 * SLOTS,), np.int64)
    single, double = array(job, 0, np.float32), array(job, 0, np.float64)
    side, weight, numbers = array(job, 1, np.uint8), array(job, 2, np.float64), array(job, 3, np.float64)
    sums, fine = array(job, 4, np.float64), array(job, 5, np.float64)
    panels = job[PANELS]
    size = 2 * panels * POWERS
    while True:
        chunk, first, last = _turn(job)
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
    """Slots: …, coefficients of the slopes and of the values (2 · panels, POWERS), by score, by weight, moved (chunks)."""
    job = numba.carray(data, (ARRAYS + 9 * SLOTS,), np.int64)
    side, weight, numbers = array(job, 1, np.uint8), array(job, 2, np.float64), array(job, 3, np.float64)
    slopes, values = array(job, 4, np.float64), array(job, 5, np.float64)
    by_weight, moved = array(job, 7, np.float64), array(job, 8, np.float64)
    single, double = array(job, 0, np.float32), array(job, 0, np.float64)
    by_single, by_double = array(job, 6, np.float32), array(job, 6, np.float64)
    n = job[PANELS]
    while True:
        chunk, first, last = _turn(job)
        if chunk < 0:
            return
        if job[WIDE]:
            moved[chunk] = read_off(double, side, weight, numbers, n, slopes, values, by_double, by_weight, first, last)
        else:
            moved[chunk] = read_off(single, side, weight, numbers, n, slopes, values, by_single, by_weight, first, last)


@team_function
def arrange_team(data):
    """Slots: …, order, x, sorted side, sorted weight."""
    job = numba.carray(data, (ARRAYS + 8 * SLOTS,), np.int64)
    side, weight, numbers = array(job, 1, np.uint8), array(job, 2, np.float64), array(job, 3, np.float64)
    order, x = array(job, 4, np.int64), array(job, 5, np.float64)
    sorted_side, sorted_weight = array(job, 6, np.uint8), array(job, 7, np.float64)
    single, double = array(job, 0, np.float32), array(job, 0, np.float64)
    while True:
        chunk, first, last = _turn(job)
        if chunk < 0:
            return
        if job[WIDE]:
            arrange(double, side, weight, numbers, order, x, sorted_side, sorted_weight, first, last)
        else:
            arrange(single, side, weight, numbers, order, x, sorted_side, sorted_weight, first, last)


@team_function
def scan_team(data):
    """One "chunk" is one direction. Slots: x, side, weight (sorted), results (2), room (2, MOMENTS), slope, lost (2, n)."""
    job = numba.carray(data, (ARRAYS + 7 * SLOTS,), np.int64)
    x, side, weight = array(job, 0, np.float64), array(job, 1, np.uint8), array(job, 2, np.float64)
    results, room = array(job, 3, np.float64), array(job, 4, np.float64)
    slope, lost = array(job, 5, np.float64), array(job, 6, np.float64)
    n, kind = len(x), job[KIND]
    while True:
        d, _, _ = _turn(job)
        if d < 0:
            return
        m = room[d * MOMENTS : (d + 1) * MOMENTS]
        s, o = slope[d * n : (d + 1) * n], lost[d * n : (d + 1) * n]
        if kind == UNIFORM:
            results[d] = windows(x, side, weight, d == 1, m, s, o)
        else:
            results[d] = fading(x, side, weight, d == 1, kind, s, o)


@team_function
def spread_team(data):
    """Slots: x, side, weight, order, slope, lost, factors, by score, by weight, moved (chunks)."""
    job = numba.carray(data, (ARRAYS + 10 * SLOTS,), np.int64)
    x, side, weight = array(job, 0, np.float64), array(job, 1, np.uint8), array(job, 2, np.float64)
    order, slope, lost = array(job, 3, np.int64), array(job, 4, np.float64), array(job, 5, np.float64)
    factors, by_weight, moved = array(job, 6, np.float64), array(job, 8, np.float64), array(job, 9, np.float64)
    single, double = array(job, 7, np.float32), array(job, 7, np.float64)
    while True:
        chunk, first, last = _turn(job)
        if chunk < 0:
            return
        if job[WIDE]:
            moved[chunk] = spread(order, x, side, weight, slope, lost, factors, double, by_weight, first, last)
        else:
            moved[chunk] = spread(order, x, side, weight, slope, lost, factors, single, by_weight, first, last)
