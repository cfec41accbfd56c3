"""The embedded W&B-compatible server: runs and artifacts over W&B's HTTP and GraphQL API, kept in one folder.

It is independent of the rest of ckptsync: it imports only `ckptsync.errors`, and the rest imports only `local`, which works
without the `server` extra.
"""
