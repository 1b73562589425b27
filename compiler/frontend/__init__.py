"""From a model to a quantised Network: graph to graph, one pass a file (compiler/passes.py has their order).

importer reads ONNX; ops and graph are what passes work on; lower makes the Network; export and segments write ONNX.
"""
