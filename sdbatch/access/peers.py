"""Which account of this machine sent a request, and whether it may use the page without a password.

The kernel's tables of TCP connections contain the account at the other end. An account may use the page if file
permissions let it put jobs into the inbox.
"""

import ipaddress
import os
import pwd
import socket
import sys
from contextlib import suppress
from grp import getgrgid
from pathlib import Path

from sdbatch.messages import Message
from sdbatch.storage.root import Root

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
OVERFLOW = Path("/proc/sys/kernel/overflowuid")  # the uid of accounts that a user namespace hides
ADMIN = 0
BY_WRITING = 0o020  # of a folder's mode: its group may put files into it

Ends = tuple[str, int, str, int]


def account_of(connection: socket.socket) -> int | None:
    """The account at the other end of a local connection; None if it is unknown.

    A closed end has no account, and the table then shows root. Its inode is then 0; a second look finds an end that was
    closed while the table was written.
    """
    try:
        here, there = connection.getsockname(), connection.getpeername()
    except OSError:
        return None
    if not isinstance(here, tuple):
        return None  # a Unix socket: who may connect is the business of its file's mode
    ends = (_plain(there[0]), int(there[1]), _plain(here[0]), int(here[1]))
    first, second = _find_socket(ends), _find_socket(ends)
    if first is None or first != second:
        return None
    with suppress(OSError, ValueError):
        if first[0] == int(OVERFLOW.read_text()):
            return None
    return first[0]


def _find_socket(ends: Ends) -> tuple[int, int] | None:
    """Account and inode of the open socket with these ends."""
    for table in TABLES:
        with suppress(OSError):
            for line in table.read_text().splitlines()[1:]:
                words = line.split()
                if (*_address(words[1]), *_address(words[2])) == ends and (inode := int(words[9])):
                    return int(words[7]), inode
    return None


def _address(text: str) -> tuple[str, int]:
    """The address in "0100007F:1F90": 32-bit words in memory order, and a port."""
    packed, _, port = text.partition(":")
    address = b"".join(int(packed[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(packed), 8))
    return _plain(socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)), int(port, 16)


def _plain(address: str) -> str:
    """An address in one form; an IPv4 address mapped to IPv6 becomes IPv4."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return str(getattr(found, "ipv4_mapped", None) or found)


def refusal(account: int | None, root: Root) -> str:
    """Why an account may not use the page, and what to do; empty if it may."""
    if account is None:
        return Message(
            "The page can't tell which account of this machine asks, and without a password it "
            "answers those alone who may drop jobs: ask an admin to set web.password in "
            "configs/sdbatch.yaml."
        )
    owners, groups = _rights(root)
    if account in owners or groups & _groups_of(account):
        return ""
    name = _name_of(account)
    if not groups:
        return Message(
            "The account {name} may not drop jobs here: ask an admin to set web.password in configs/sdbatch.yaml.", name
        )
    group = _group_name(min(groups))
    template = (
        "The account {name} may not drop jobs here: ask an admin to add it to the group {group} (sudo usermod -aG "
        "{group} {name}), or to set web.password in configs/sdbatch.yaml."
    )
    return Message(template, name, group)


def _rights(root: Root) -> tuple[set[int], set[int]]:
    """The accounts and groups that may write in the root or its inbox."""
    owners, groups = {ADMIN, os.geteuid()}, set()
    for folder in (root.path, root.inbox):
        with suppress(FileNotFoundError):
            status = folder.stat()
            owners.add(status.st_uid)
            if status.st_mode & BY_WRITING:
                groups.add(status.st_gid)
    return owners, groups


def _groups_of(account: int) -> set[int]:
    try:
        person = pwd.getpwuid(account)
    except KeyError:
        return set()
    return set(os.getgrouplist(person.pw_name, person.pw_gid))


def _group_name(group: int) -> str:
    try:
        return getgrgid(group).gr_name
    except KeyError:
        return str(group)


def _name_of(account: int) -> str:
    try:
        return pwd.getpwuid(account).pw_name
    except KeyError:
        return str(account)
