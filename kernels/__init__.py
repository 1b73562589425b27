"""CPU reference kernels: exact integer arithmetic that the simulator and the tests rely on."""
