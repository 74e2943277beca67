"""P(the target wins) where the classes lie on several ranks."""
