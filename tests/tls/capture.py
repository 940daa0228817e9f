"""Writes everything that crosses the loopback interface to a file, until standard input closes. Needs the right to open raw sockets.

Usage: capture.py FILE
"""

import selectors
import socket
import sys

SO_RCVBUFFORCE = 33  # of Linux; no name in Python
EVERYTHING = 3  # ETH_P_ALL

wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERYTHING))
wire.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 256 << 20)
wire.bind(("lo", 0))
print("capturing", flush=True)

selector = selectors.DefaultSelector()
selector.register(wire, selectors.EVENT_READ)
selector.register(sys.stdin, selectors.EVENT_READ)
with open(sys.argv[1], "wb") as file:
    ends = False
    while not ends:
        ready = selector.select()
        ends = any(key.fileobj is sys.stdin for key, _ in ready)
        wire.setblocking(False)
        try:
            while True:
                # The loopback interface shows each packet twice: as it leaves, and as it arrives.
                packet, about = wire.recvfrom(1 << 18)
                if about[2] != socket.PACKET_OUTGOING:
                    file.write(packet)
        except BlockingIOError:
            pass
