"""FRCRN itself: its topology, its weights, and the reference implementation in PyTorch."""
