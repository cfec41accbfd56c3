"""What a user tries before relying on ckptsync: a drill with a bit-by-bit comparison, and the health check behind `doctor`.

Takes the user's command and gives results in words. May not touch the user's own runs and folders.
"""
