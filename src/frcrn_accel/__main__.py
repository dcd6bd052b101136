"""`python -m frcrn_accel`: for `torchrun -m`, and for machines whose path lacks the installed scripts."""

from frcrn_accel.cli import main

main()
