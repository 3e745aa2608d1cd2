"""How the networks are run: compiled or not, memory layout, attention kernels, threads."""
