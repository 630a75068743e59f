"""`python -m launch.address FIRST_PORT PORT_COUNT [INTERFACE]`: where the processes of a SLURM job meet.

Prints the address of this machine at which the others find it, and a port there that nobody listens on.
"""

import argparse
import errno
import fcntl
import ipaddress
import os
import socket
import struct
import sys

from llama_foundation.errors import ConfigError, exit_status

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


def port_of_job(job: int, where: str, first: int, count: int) -> int:
    """Return a port at `where` that nobody listens on: the job's own of `count`, or the next one that is free.

    Raises:
        ConfigError: all of them are taken.
    """
    for number in range(count):
        port = first + (job + number) % count
        with socket.socket(socket.AF_INET6 if ":" in where else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((where, port))
                probe.listen()
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise ConfigError(f"{socket.gethostname()} cannot listen on {where}: {error.strerror}") from error
            else:
                return port
    raise ConfigError(
        f"{socket.gethostname()}: every port of {where} from cluster.slurm.first_port={first} to {first + count - 1} "
        "is taken; choose another first_port, or a larger port_count"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.address", description=__doc__.partition("\n")[0])
    parser.add_argument("first_port", type=int)
    parser.add_argument("port_count", type=int)
    parser.add_argument("interface", nargs="?")
    options = parser.parse_args()
    where = address(options.interface, os.environ["SLURM_JOB_NUM_NODES"] == "1")
    print(where, port_of_job(int(os.environ["SLURM_JOB_ID"]), where, options.first_port, options.port_count))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
