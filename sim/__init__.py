"""The simulator: runs a Program, values by kernels and time by recurrences."""
