"""What an open of one of the machine's device nodes makes: a file of ``fops``, for every door.

Which nodes exist is the rule of ``machine/nodes.py``. An open of the container's or iommufd's node shows that the
program speaks mainline, which decides what its later opens of a group mean (``fops/either.py``).

The modules of an ABI are imported when one of its nodes is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvfio.errors import NoSuchGroup
from uvfio.machine.nodes import node_at

if TYPE_CHECKING:
    from uvfio.core.seams import Task
    from uvfio.core.structure.framework import Framework
    from uvfio.fops.file import File

__all__ = ["open_node"]


def open_node(framework: Framework, path: str, task: Task, abi: str) -> File:
    """The VFIO file behind the node at ``path``, for a program that may speak ``abi``: "2011", "mainline", "auto".

    The caller installs the file in the program or releases it. Raises NoSuchGroup with ENOENT if ``path`` is no node,
    and as the file's own open: Busy if the group is open in a way that excludes this open.
    """
    node = node_at(framework, path, abi)
    if node is None:
        raise NoSuchGroup(f"{path}: no such device", "see `uvfio list`", errno=2)
    if node.opens == "cdev":
        from uvfio.fops.mainline.cdev import open_cdev

        return open_cdev(framework, node.minor)
    if node.opens == "iommufd":
        from uvfio.fops.mainline.iommufd import open_iommufd

        task.mm.abi = "mainline"
        iommufd = open_iommufd(framework)
        iommufd.context.opener = task.mm.name
        return iommufd
    if node.opens == "container":
        from uvfio.fops.mainline.container import open_container

        task.mm.abi = "mainline"
        container = open_container(framework)
        container.container.opener = task.mm.name
        return container
    group = framework.group(node.bus, node.group)
    if abi == "2011":
        from uvfio.fops.rfc2011.group import open_group

        return open_group(framework, group, task)
    from uvfio.fops.either import open_group as open_either

    return open_either(framework, group, task, abi)
