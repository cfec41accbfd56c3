"""`python -m ckptsync` is the command `ckptsync`."""

from ckptsync.cli import main

main()
