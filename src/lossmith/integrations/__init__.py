"""The losses in the tools where people train. Each module needs the package of its name, and nothing else here imports it."""
