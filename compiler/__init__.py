"""The compiler: model -> graph -> sparsify, quantise -> lower -> map and tile -> schedule -> allocate -> Program."""
