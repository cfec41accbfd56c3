"""ckptsync as a systemd service: what it reports to the service manager (notify), and the unit files (units).

Imports neither `job` nor `upload`: it learns from them what to report.
"""
