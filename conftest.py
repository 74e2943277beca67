"""What pytest must not load where it cannot: the kernels for the GPU need Triton, which comes for few systems."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("triton") else ["src/lossmith/engine/argmax/kernels/cuda.py"]
