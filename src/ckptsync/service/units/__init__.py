"""The systemd units of one instance: what they contain, how they are installed and removed, and whether their user can run them.

Takes an Instance (the name, user, output folder and command line of one watched training) and gives files on disk. Runs no
systemctl: an installed unit does nothing until the administrator enables it.
"""

from ckptsync.service.units.access import require_reachable
from ckptsync.service.units.content import KINDS, SYSTEM, File, Instance, Owner, Place, plan, require_name, templates
from ckptsync.service.units.installation import enabled, remove, write

__all__ = [
    "KINDS",
    "SYSTEM",
    "File",
    "Instance",
    "Owner",
    "Place",
    "enabled",
    "plan",
    "remove",
    "require_name",
    "require_reachable",
    "templates",
    "write",
]
