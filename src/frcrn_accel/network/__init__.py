"""FRCRN itself: its topology, its checkpoints, and the reference implementation in PyTorch."""
