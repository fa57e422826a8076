"""Sends back each frame that comes, reversed; a frame is its length, its checksum and as many bytes. Ends when a client says so.

Arguments: how many steps (not used), the address to listen at, and how many connections there are to be before it forks a child
that has them too.
"""
import os
import selectors
import signal
import socket
import struct
import sys
import zlib

selector = selectors.DefaultSelector()
shared = int(sys.argv[3]) if len(sys.argv) > 3 else 0
child = accepted = 0
family = socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET
listener = socket.create_server((sys.argv[2], 0), family=family, backlog=64)
name = listener.getsockname()
selector.register(listener, selectors.EVENT_READ)
print("port", name[1], flush=True)


class Client:
    def __init__(self, connection):
        self.socket = connection
        self.names = connection.getsockname(), connection.getpeername()
        self.got = bytearray()
        self.out = bytearray()

    def read(self):
        data = self.socket.recv(65536)
        self.got += data
        while len(self.got) >= 8:
            length, check = struct.unpack_from("<II", self.got)
            if len(self.got) < 8 + length:
                break
            content = bytes(self.got[8 : 8 + length])
            del self.got[: 8 + length]
            if zlib.crc32(content) != check:
                sys.exit("a damaged frame")
            if content == b"end":
                return False
            answer = content[::-1]
            self.out += struct.pack("<II", length, zlib.crc32(answer)) + answer
        if (self.socket.getsockname(), self.socket.getpeername()) != self.names:
            sys.exit("its name is another")
        if not data:
            selector.unregister(self.socket)
            self.socket.close()
        return True

    def write(self):
        if self.out and self.socket.fileno() >= 0:
            try:
                del self.out[: self.socket.send(self.out[:262144])]
            except BlockingIOError:
                pass


frames = True
while frames:
    for key, events in selector.select():
        if key.fileobj is listener:
            connection, _ = listener.accept()
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ, Client(connection))
            accepted += 1
            if accepted == shared:
                child = os.fork()
                while child == 0:
                    signal.pause()
            continue
        client = key.data
        if events & selectors.EVENT_READ:
            frames = client.read()
            if not frames:
                break
        client.write()
        if client.socket.fileno() >= 0:
            # Who does not read is not read from.
            wanted = selectors.EVENT_WRITE if len(client.out) > 1 << 20 else selectors.EVENT_READ
            selector.modify(client.socket, wanted | (selectors.EVENT_WRITE if client.out else 0), client)
if child:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
print("ok echo_server", flush=True)
