"""The article's argument on points on a line: where each loss puts the threshold, with its scale fixed and free."""
