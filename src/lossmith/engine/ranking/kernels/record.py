"""Numbers that the kernels and their callers share; loads no numba.

They stand in this folder, since the cache of compiled kernels knows the sources of this folder and of the runtime only.
"""

POWERS = 16  # powers of t, t⁰ to t¹⁵, of a panel: as many as ``maths.chebyshev.TERMS``; the loops are unrolled for 16
LAPLACE, EXPONENTIAL, UNIFORM = 0, 1, 2  # kinds of noise with kinks, in the job of ``scan_team``
SURVEY_NUMBERS = 6  # results of ``survey`` for a chunk: lowest, highest, validity, positives, heaviest winner, heaviest loser
WINDOW_NUMBERS = 32  # working memory of ``windows`` for one direction: 30 numbers in five groups, and 2 of padding
WIDTH = 0.5  # of the cells of ``columns``, in scales
COEFFICIENTS = 10  # of a polynomial over a cell; the loops are unrolled for 10
MOST_THRESHOLDS = 1 << 16  # of a column: 8,000 scales for average precision of many samples
SERVED, ABSENT, UNSERVED = 0, 1, 2  # what became of a column: ABSENT without positives or without negatives, UNSERVED is left
