"""Holds connections to an address that say nothing, and opens another one for each that the process closes.

    silent.py ADDRESS COUNT

Prints "ready" when all were open once. Ends when standard input ends, and prints how many connections it opened in all.
"""

import resource
import select
import socket
import sys

HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
PAUSE = 0.02
"""Seconds between two looks at all connections, so that this program leaves time for the one that it disturbs."""


def opened(address):
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=10)


def main():
    address, count = sys.argv[1], int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_NOFILE, (HARD, HARD))
    poll, connections = select.poll(), {}
    poll.register(sys.stdin, select.POLLIN | select.POLLHUP)
    total = 0

    def one_more():
        nonlocal total
        total += 1
        connection = opened(address)
        connections[connection.fileno()] = connection
        poll.register(connection, select.POLLIN)

    for _ in range(count):
        one_more()
    print("ready", flush=True)
    while True:
        for descriptor, _ in poll.poll(1000):
            if descriptor == sys.stdin.fileno():
                print(total, flush=True)
                return
            poll.unregister(descriptor)
            connections.pop(descriptor).close()
            try:
                one_more()
            except OSError:
                pass
        select.select([], [], [], PAUSE)


if __name__ == "__main__":
    main()
