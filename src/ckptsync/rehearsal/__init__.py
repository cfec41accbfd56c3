"""What a user tries before relying on it: the drill, its comparison bit by bit, and the health check behind `doctor`.

May not touch the user's own runs and folders.
"""
