"""ckptsync as a service of systemd: what it tells its manager, and the units that describe it.

May not know what the service does.
"""
