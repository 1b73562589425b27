"""Zeros in weights: patterns, who chooses what goes (sparsifiers), how much of which layer, orders of channels.

sparsify and permute are passes of the front end; patterns know no graph.
"""
