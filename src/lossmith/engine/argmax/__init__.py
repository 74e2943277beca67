"""P(the target wins), P(every class wins), P(the target is among the first k)."""
