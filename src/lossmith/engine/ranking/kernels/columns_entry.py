"""``columns`` as a team function: each thread takes columns until none is left."""

from __future__ import annotations

import numpy as np

from lossmith.engine.ranking.kernels.columns import columns
from lossmith.engine.runtime.compiled import team_function
from lossmith.engine.runtime.denormals import flush_denormals, restore_mode
from lossmith.engine.runtime.launch import Layout, array, job_at, take

COLUMNS = Layout(
    "columns_team",
    ("unserved", "rows", "columns", "precision"),  # unserved: result, 1 if a column is left. precision: 1 for AP, 0 for AUC
    z=np.float64,
    state=np.uint8,
    log_m=np.float64,
    status=np.int32,
    grad=np.float64,
    by_scale=np.float64,
    scale=np.float64,
    lattice=np.int64,  # from here on, those of ``columns.tables``: ratio, first, span
    survival=np.float64,
    density=np.float64,
    slope=np.float64,
)
_NUMBER, _IN, _SIZE = COLUMNS.numbers, COLUMNS.slots, COLUMNS.size


@team_function
def columns_team(data):
    """``columns.columns`` on a job of the layout ``COLUMNS``; data: address of the job."""
    mode = flush_denormals()
    job = job_at(data, _SIZE)
    z, state, log_m, status = array(job, _IN.z), array(job, _IN.state), array(job, _IN.log_m), array(job, _IN.status)
    grad, by_scale, scale = array(job, _IN.grad), array(job, _IN.by_scale), array(job, _IN.scale)
    lattice, survival = array(job, _IN.lattice), array(job, _IN.survival)
    density, slope = array(job, _IN.density), array(job, _IN.slope)
    while True:
        first = take(job)
        if first >= job[_NUMBER.columns]:
            break
        last = min(first + job[_NUMBER.turn], job[_NUMBER.columns])
        if columns(
            z, state, job[_NUMBER.rows], job[_NUMBER.columns], 1 / scale[0], job[_NUMBER.precision] == 1, lattice[0],
            lattice[1], lattice[2], survival, density, slope, log_m, status, grad, by_scale, first, last,
        ):  # fmt: skip
            job[_NUMBER.unserved] = 1
    restore_mode(mode)
