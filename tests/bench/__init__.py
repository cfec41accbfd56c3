"""What ckptsync costs, compared with other tools that do the same work: `python -m tests.bench`.

Each module here measures one noun and yields rows. Contenders run interleaved (A B A B) in one run on one machine, with the same
bytes and the same server; a row is the median of the per-round ratios. Nothing here is a test: no time is ever asserted.
"""
