"""The embedded W&B-compatible server: runs and artifacts over W&B's HTTP and GraphQL API, kept in one folder.

Apart from the rest of ckptsync: its modules import nothing of ours but `ckptsync.errors`, and nothing of ours imports them except
`local`, which needs none of the `server` extra.
"""
