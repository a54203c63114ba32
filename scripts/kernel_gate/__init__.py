"""The checks behind scripts/check_kernels.py."""
