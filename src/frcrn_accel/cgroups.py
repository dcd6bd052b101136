"""Find the control groups of this process, whose limits hold for it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CGROUP", "OWN_GROUPS", "control_groups"]

CGROUP = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def control_groups(controller: str, cgroup: Path = CGROUP, own_groups: Path = OWN_GROUPS) -> set[Path]:
    """Return the folders of this process's control groups that can hold limits, and of all groups above them.

    systemd, Slurm and container runtimes give processes groups of their own. In a container with a namespace of its
    own, its group is the root.

    Args:
        controller: Name of the controller, such as `"cpu"` or `"memory"`.
        cgroup: Mount point of the control group file system.
        own_groups: The file with the control groups of this process.
    """
    try:
        lines = own_groups.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    found = {cgroup, cgroup / controller}
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        # Version 2 names no controllers. Version 1 is mounted under the names of its controllers, and where both are
        # used, version 2 is at `unified`.
        tops = [cgroup / controllers, cgroup / controller] if controllers else [cgroup, cgroup / "unified"]
        parts = [part for part in path.split("/") if part not in ("", "..")]
        found |= {top.joinpath(*parts[:depth]) for top in tops for depth in range(len(parts) + 1)}
    return found
