"""Does another loss help on this data? plan -> run -> store -> statistics -> report."""
