"""What ckptsync costs, against what else does the same work: `python -m tests.bench`.

Each module here measures one noun and yields rows. Contenders run interleaved (A B A B) in one run on one machine, with the same
bytes and the same server; a row is the median of the ratio in each round. Nothing here is a test: no time is ever asserted.
"""
