"""ckptsync as a systemd service: what it reports to the service manager, and the units that describe it.

May not know what the service does.
"""
