"""The contract: architecture spec, instruction set, step stream, numerics, memory, timing and Program file.

Every other room reads these modules and nothing here imports another room.
"""
