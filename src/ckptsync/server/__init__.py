"""The embedded W&B-compatible server: runs and artifacts over W&B's HTTP and GraphQL API, kept in one folder.

Independent of the rest of ckptsync: it imports only `ckptsync.errors`, and other packages import only `server.local`, which
starts a server on this machine.
"""
