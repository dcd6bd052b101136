"""`python -m frcrn_accel`: what `torchrun -m` and machines without scripts on the path start."""

from frcrn_accel.cli import main

main()
