"""`python -m launch.address [INTERFACE]`: the address of this machine at which the others find it."""

import fcntl
import ipaddress
import os
import socket
import struct
import sys

from llama_foundation.errors import ConfigError, UserError

SIOCGIFADDR = 0x8915  # linux/sockios.h


def address(interface: str | None, alone: bool) -> str:
    """Return an address of this machine.

    Args:
        interface: of which interface, its IPv4 address; None: what the host's own name means.
        alone: no other machine has to reach it.

    Raises:
        ConfigError: there is no such interface, it has no address, or the host's name means only itself.
    """
    if interface is not None:
        return _of_interface(interface)
    if alone:
        return "127.0.0.1"
    name = socket.gethostname()
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0]
    except OSError as error:
        raise ConfigError(f"{name} does not know its own address ({error}); set cluster.interface") from error
    if ipaddress.ip_address(str(found).partition("%")[0]).is_loopback:
        raise ConfigError(
            f"{name} takes its own name for {found}, where no other node finds it; set cluster.interface to the "
            "network that joins the nodes (ip link lists them)"
        )
    return str(found)


def _of_interface(interface: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        try:
            answer = fcntl.ioctl(query, SIOCGIFADDR, struct.pack("256s", interface.encode()))
        except OSError as error:
            there = ", ".join(sorted(os.listdir("/sys/class/net")))
            raise ConfigError(
                f"cluster.interface={interface}: {socket.gethostname()} has no IPv4 address there "
                f"({error.strerror}); it has {there}"
            ) from error
    return socket.inet_ntoa(answer[20:24])


def free_port() -> int:
    """Return a port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> int:
    try:
        print(address(sys.argv[1] if len(sys.argv) > 1 else None, os.environ.get("SLURM_JOB_NUM_NODES") == "1"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
