"""What the tests share: oracles that do not know the library, cases, and ranks."""
