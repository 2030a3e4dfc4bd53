"""What megatron-core 0.16 imports of emerging_optimizers 0.1, for tests: the package's releases are on GitHub only.

State, groups and order of the step are the real ones'. What is orthogonalized is gathered over tensor-parallel ranks.
"""
