"""The ground: numerical kernels, one folder an operation. Imports JAX alone."""
