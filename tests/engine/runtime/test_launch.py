"""Jobs: what Python writes by name, compiled code reads by name; an array that does not fit is refused."""

import ctypes

import numpy as np
import pytest
import torch

from lossmith.engine.runtime.compiled import team_function
from lossmith.engine.runtime.launch import Layout, array, array_as, job_at, matrix, take

LAYOUT = Layout("sum_team", ("count",), numbers=np.float64, bits=(np.float32, np.float64), result=np.int32)
_SIZE, _NUMBER, _IN = LAYOUT.size, LAYOUT.numbers, LAYOUT.slots


@team_function
def sum_team(data):
    job = job_at(data, _SIZE)
    numbers, result = array(job, _IN.numbers), array(job, _IN.result)
    bits = array_as(job, _IN.bits, np.int32)
    total = 0.0
    for i in range(job[_NUMBER.count]):
        total += numbers[i]
    result[0], result[1], result[2] = int(total), len(numbers), bits[0]


def arrays() -> dict[str, np.ndarray]:
    return {"numbers": np.array([1.0, 2.0, 4.0]), "bits": np.ones(2, np.float32), "result": np.zeros(3, np.int32)}


def test_compiled_code_reads_what_was_written() -> None:
    given = arrays()
    job = LAYOUT.job({"count": 2}, given)
    sum_team.ctypes(job.ctypes.data)
    assert given["result"].tolist() == [3, 3, ctypes.c_int32.from_buffer(ctypes.c_float(1.0)).value]


def test_the_last_arrays_may_serve_many_jobs_and_tensors_are_arrays() -> None:
    given = arrays()
    tail = LAYOUT.tail({"result": given["result"]})
    first = {"numbers": torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64), "bits": torch.ones(2)}
    sum_team.ctypes(LAYOUT.job({"count": 3}, first, tail).ctypes.data)
    assert given["result"][0] == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numbers": np.ones(3, np.float32)}, "^sum_team: numbers: expected float64, got float32$"),
        ({"bits": torch.ones(2, dtype=torch.int64)}, "^sum_team: bits: expected float32 or float64, got torch.int64$"),
        ({"numbers": np.ones(6)[::2]}, r"^sum_team: numbers: expected a contiguous array; call contiguous\(\) first$"),
        ({"result": None}, "^sum_team: expected the arrays numbers, bits, result, got "),
        ({"other": np.ones(1)}, "^sum_team: expected the arrays numbers, bits, result, got numbers, bits, result, other$"),
    ],
)
def test_an_array_that_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    given = {name: value for name, value in {**arrays(), **change}.items() if value is not None}
    with pytest.raises(TypeError, match=message):
        LAYOUT.job({"count": 2}, given)


def test_slots_with_a_choice_of_dtypes_agree() -> None:
    layout = Layout("two", (), x=(np.float32, np.float64), y=(np.float32, np.float64))
    layout.job({}, {"x": np.ones(1), "y": np.ones(1)})
    with pytest.raises(TypeError, match=r"^two: y: expected float64, got float32$"):
        layout.job({}, {"x": np.ones(1), "y": np.ones(1, np.float32)})


_PIECES = Layout("pieces_team", ("pieces",), table=np.int32)
_PIECES_SIZE, _PIECES_NUMBER, _PIECES_IN = _PIECES.size, _PIECES.numbers, _PIECES.slots


@team_function
def pieces_team(data):
    job = job_at(data, _PIECES_SIZE)
    table = matrix(job, _PIECES_IN.table, 3)
    while True:
        first = take(job)
        if first >= job[_PIECES_NUMBER.pieces]:
            return
        for row in range(first, min(first + job[_PIECES_NUMBER.turn], len(table))):
            table[row, 0], table[row, 1], table[row, 2] = first, row, table.shape[0]


def test_pieces_are_taken_by_turns_and_an_array_may_have_two_dimensions() -> None:
    for turn in (1, 2):
        table = np.zeros((5, 3), np.int32)
        job = _PIECES.job({"pieces": 5} | ({"turn": turn} if turn > 1 else {}), {"table": table})
        pieces_team.ctypes(job.ctypes.data)
        assert table.tolist() == [[row // turn * turn, row, 5] for row in range(5)]
        assert job[_PIECES.numbers.next] >= 5
