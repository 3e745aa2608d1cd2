"""Takes nodes of a cluster out of use, and back, by marks in jobs/: works over a share, without a service too."""

from datetime import UTC, datetime

from sdbatch.errors import JobError
from sdbatch.job.messages import likely
from sdbatch.messages import Message
from sdbatch.spool import status_reader
from sdbatch.storage import files
from sdbatch.storage.root import Root


def drain(root: Root, node: str) -> str:
    """A node's jobs end, and it gets no others until `resume`.

    Raises:
        JobError: the running service knows no such node.
    """
    root.require(root.inbox)
    facts = status_reader.read_overview(root, datetime.now(UTC))
    known = list(dict.fromkeys(str(seat["node"]) for seat in facts["seats"] if seat.get("node")))
    if node not in known and (facts["is_running"] or not _is_name(node)):
        names = ", ".join(known) or "-"
        if near := likely(node, known):
            raise JobError('there is no node "{name}"; did you mean {near}? Nodes are {names}', node, near, names)
        raise JobError('there is no node "{name}"; nodes are {names}', node, names)
    # The service must be able to read it, whatever the umask of the user.
    files.write_atomically(root.drain_mark(node), b"", mode=0o664)
    template = "{node} ends its jobs and gets no others (`sdbatch seats` shows when it is drained)"
    return Message(template, node)


def resume(root: Root, node: str) -> str:
    """A drained node is used again.

    Raises:
        JobError: it is not drained.
    """
    root.require(root.inbox)
    if node not in root.drained():
        raise JobError("{node} is not drained; drained are {names}", node, ", ".join(sorted(root.drained())) or "-")
    files.delete(root.drain_mark(node))
    return Message("{node} gets jobs again", node)


def _is_name(node: str) -> bool:
    return bool(node) and "/" not in node and "\0" not in node and len(node) < 200
