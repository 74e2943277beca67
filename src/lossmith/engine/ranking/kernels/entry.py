"""The loops of ``loops`` as C functions of one pointer to a job (``engine.runtime.launch``), for any number of threads.

Each thread takes chunks of samples until none is left. The bounds of the chunks do not depend on the number of threads, and
every chunk has results of its own. ``loops`` defines the arrays in the slots; scores are float32 or float64.
"""

from __future__ import annotations

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
from lossmith.engine.runtime.launch import Layout, array, array_as, job_at, take

# Numbers of a job:
# samples: how many there are; for ``scan_team`` how many directions
# chunk: samples of a chunk
# panels: of the lattice; 0 for noise with kinks
# kind: survey_team: 1 if the target is uint8, 0 if int64; scan_team: the kind of noise of ``record``
# wide: 1 if the scores are float64, 0 if float32
_NUMBERS = ("samples", "chunk", "panels", "kind", "wide")

# Arrays of a job. Scores and gradients in scores have one of two dtypes, the same in one job.
_SCORES = (np.float32, np.float64)
_TARGET = (np.int64, np.uint8)

SURVEY = Layout("survey_team", _NUMBERS, scores=_SCORES, side=np.uint8, weight=np.float64, target=_TARGET, results=np.float64)
DEPOSIT = Layout(
    "deposit_team",
    _NUMBERS,
    scores=_SCORES,
    side=np.uint8,
    weight=np.float64,
    numbers=np.float64,
    sums=np.float64,
    fine=np.float64,
)
READ_OFF = Layout(
    "read_off_team",
    _NUMBERS,
    scores=_SCORES,
    side=np.uint8,
    weight=np.float64,
    numbers=np.float64,
    slopes=np.float64,
    values=np.float64,
    by_score=_SCORES,
    by_weight=np.float64,
    scale_sums=np.float64,
)
ARRANGE = Layout(
    "arrange_team",
    _NUMBERS,
    scores=_SCORES,
    side=np.uint8,
    weight=np.float64,
    numbers=np.float64,
    order=np.int64,
    x=np.float64,
    sorted_side=np.uint8,
    sorted_weight=np.float64,
)
SCAN = Layout(
    "scan_team",
    _NUMBERS,
    x=np.float64,
    side=np.uint8,
    weight=np.float64,
    wins=np.float64,
    memory=np.float64,
    slope=np.float64,
    lost=np.float64,
)
SPREAD = Layout(
    "spread_team",
    _NUMBERS,
    x=np.float64,
    side=np.uint8,
    weight=np.float64,
    order=np.int64,
    slope=np.float64,
    lost=np.float64,
    factors=np.float64,
    by_score=_SCORES,
    by_weight=np.float64,
    scale_sums=np.float64,
)
LAYOUTS = {layout.name: layout for layout in (SURVEY, DEPOSIT, READ_OFF, ARRANGE, SCAN, SPREAD)}

# Global tuples and integers: constants for numba.
_NUMBER = SURVEY.numbers  # positions, the same in all layouts
_SURVEY, _DEPOSIT, _READ_OFF = SURVEY.slots, DEPOSIT.slots, READ_OFF.slots
_ARRANGE, _SCAN, _SPREAD = ARRANGE.slots, SCAN.slots, SPREAD.slots
_SIZE = max(layout.size for layout in LAYOUTS.values())  # of the longest job; no position beyond a job's own is read


@jit
def _next_chunk(job):
    """The next chunk: its number, its first sample and its last (exclusive), all int64; the number is −1 if none is left."""
    chunk = take(job)
    first = chunk * job[_NUMBER.chunk]
    if first >= job[_NUMBER.samples]:
        return -1, 0, 0
    return chunk, first, min(first + job[_NUMBER.chunk], job[_NUMBER.samples])


@team_function
def survey_team(data):
    """Slots: scores; side, the result; weight; target (n,) int64 or uint8; results (chunks · SURVEY_NUMBERS,) float64."""
    job = job_at(data, _SIZE)
    side, weight, results = array(job, _SURVEY.side), array(job, _SURVEY.weight), array(job, _SURVEY.results)
    single, double = array_as(job, _SURVEY.scores, np.float32), array_as(job, _SURVEY.scores, np.float64)
    whole, byte = array_as(job, _SURVEY.target, np.int64), array_as(job, _SURVEY.target, np.uint8)
    while True:
        chunk, first, last = _next_chunk(job)
        if chunk < 0:
            return
        chunk_results = results[chunk * SURVEY_NUMBERS : (chunk + 1) * SURVEY_NUMBERS]
        if job[_NUMBER.wide]:
            if job[_NUMBER.kind]:
                survey(double, byte, weight, side, chunk_results, first, last)
            else:
                survey(double, whole, weight, side, chunk_results, first, last)
        elif job[_NUMBER.kind]:
            survey(single, byte, weight, side, chunk_results, first, last)
        else:
            survey(single, whole, weight, side, chunk_results, first, last)


@team_function
def deposit_team(data):
    """Slots: scores, side, weight, numbers; sums and fine, both (chunks · 2 · panels · POWERS,) float64, zeros on entry."""
    job = job_at(data, _SIZE)
    single, double = array_as(job, _DEPOSIT.scores, np.float32), array_as(job, _DEPOSIT.scores, np.float64)
    side, weight, numbers = array(job, _DEPOSIT.side), array(job, _DEPOSIT.weight), array(job, _DEPOSIT.numbers)
    sums, fine = array(job, _DEPOSIT.sums), array(job, _DEPOSIT.fine)
    panels = job[_NUMBER.panels]
    size = 2 * panels * POWERS
    while True:
        chunk, first, last = _next_chunk(job)
        if chunk < 0:
            return
        own = sums[chunk * size : (chunk + 1) * size]
        work = fine[chunk * size : (chunk + 1) * size]
        if job[_NUMBER.wide]:
            deposit(double, side, weight, numbers, panels, own, work, first, last)
        else:
            deposit(single, side, weight, numbers, panels, own, work, first, last)


@team_function
def read_off_team(data):
    """Slots: scores, side, weight, numbers, slopes, values; results by_score, by_weight, scale_sums.

    slopes, values: (2 · panels · POWERS,) float64; by_score: (n,) of the scores' dtype; by_weight: (n,) float64 or (0,);
    scale_sums: (chunks,) float64, what ``read_off`` returns for each chunk.
    """
    job = job_at(data, _SIZE)
    single, double = array_as(job, _READ_OFF.scores, np.float32), array_as(job, _READ_OFF.scores, np.float64)
    side, weight, numbers = array(job, _READ_OFF.side), array(job, _READ_OFF.weight), array(job, _READ_OFF.numbers)
    slopes, values = array(job, _READ_OFF.slopes), array(job, _READ_OFF.values)
    by_weight, scale_sums = array(job, _READ_OFF.by_weight), array(job, _READ_OFF.scale_sums)
    by_single, by_double = array_as(job, _READ_OFF.by_score, np.float32), array_as(job, _READ_OFF.by_score, np.float64)
    n = job[_NUMBER.panels]
    while True:
        chunk, first, last = _next_chunk(job)
        if chunk < 0:
            return
        if job[_NUMBER.wide]:
            scale_sums[chunk] = read_off(double, side, weight, numbers, n, slopes, values, by_double, by_weight, first, last)
        else:
            scale_sums[chunk] = read_off(single, side, weight, numbers, n, slopes, values, by_single, by_weight, first, last)


@team_function
def arrange_team(data):
    """Slots: scores, side, weight, numbers, order; results x, sorted_side, sorted_weight."""
    job = job_at(data, _SIZE)
    single, double = array_as(job, _ARRANGE.scores, np.float32), array_as(job, _ARRANGE.scores, np.float64)
    side, weight, numbers = array(job, _ARRANGE.side), array(job, _ARRANGE.weight), array(job, _ARRANGE.numbers)
    order, x = array(job, _ARRANGE.order), array(job, _ARRANGE.x)
    sorted_side, sorted_weight = array(job, _ARRANGE.sorted_side), array(job, _ARRANGE.sorted_weight)
    while True:
        chunk, first, last = _next_chunk(job)
        if chunk < 0:
            return
        if job[_NUMBER.wide]:
            arrange(double, side, weight, numbers, order, x, sorted_side, sorted_weight, first, last)
        else:
            arrange(single, side, weight, numbers, order, x, sorted_side, sorted_weight, first, last)


@team_function
def scan_team(data):
    """One "chunk" is one direction. Slots: x, side, weight, sorted; results wins, memory, slope, lost.

    wins: (directions,) float64; memory: (directions · WINDOW_NUMBERS,) float64, zeros on entry;
    slope, lost: (2 · n,) float64, or (0,) if no gradient is asked for.
    """
    job = job_at(data, _SIZE)
    x, side, weight = array(job, _SCAN.x), array(job, _SCAN.side), array(job, _SCAN.weight)
    results, memory = array(job, _SCAN.wins), array(job, _SCAN.memory)
    slope, lost = array(job, _SCAN.slope), array(job, _SCAN.lost)
    n, kind = len(x), job[_NUMBER.kind]
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
    job = job_at(data, _SIZE)
    x, side, weight = array(job, _SPREAD.x), array(job, _SPREAD.side), array(job, _SPREAD.weight)
    order, slope, lost = array(job, _SPREAD.order), array(job, _SPREAD.slope), array(job, _SPREAD.lost)
    factors, by_weight, scale_sums = array(job, _SPREAD.factors), array(job, _SPREAD.by_weight), array(job, _SPREAD.scale_sums)
    single, double = array_as(job, _SPREAD.by_score, np.float32), array_as(job, _SPREAD.by_score, np.float64)
    while True:
        chunk, first, last = _next_chunk(job)
        if chunk < 0:
            return
        if job[_NUMBER.wide]:
            scale_sums[chunk] = spread(order, x, side, weight, slope, lost, factors, double, by_weight, first, last)
        else:
            scale_sums[chunk] = spread(order, x, side, weight, slope, lost, factors, single, by_weight, first, last)
