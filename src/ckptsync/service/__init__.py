"""ckptsync as a systemd service: what it reports to the service manager (notify), and the unit files (units).

`job` and `upload` tell it what to report; it imports neither.
"""
