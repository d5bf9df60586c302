"""Trains the guard's classifier from the messages that lie here; the README is its data card."""

import os

# Before NumPy is loaded: the same instructions on every x86-64 processor of the last ten years, so that sums come out
# the same to the last bit. Of those it would use, only these differ from one such processor to the next.
os.environ.setdefault("NPY_DISABLE_CPU_FEATURES", "X86_V4 AVX512_ICL AVX512_SPR")
os.environ.setdefault("OPENBLAS_CORETYPE", "Haswell")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
