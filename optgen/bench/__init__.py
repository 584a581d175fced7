"""The benchmark: updates by optgen, by its peers, and by a C kernel that shows what the memory allows.

``optgen bench`` runs it; benchmarks/README.md says how it measures.
"""
