"""A client of echo_server.py that checks each answer, and how long it took. Arguments: address, port, how many connections.

Its standard input says what to do, a line each; each is answered with a line: `pause` (when all was answered), `go`, `sever` (wait
until no answer has come for a second, while frames are under way), `stop` (when all was answered), `end` (the server, too).
"""
import collections
import os
import random
import socket
import struct
import sys
import threading
import time
import zlib

address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
running, stopped, ending = threading.Event(), threading.Event(), threading.Event()
running.set()


class Connection:
    def __init__(self, number):
        self.socket = socket.create_connection((address, port))
        self.random = random.Random(number)
        self.under_way = collections.deque()
        self.room = threading.Semaphore(16)
        self.frames = 0
        self.longest = 0.0
        self.threads = [threading.Thread(target=guard, args=(call,), daemon=True) for call in (self.send, self.receive)]
        for thread in self.threads:
            thread.start()

    def frame(self, content):
        return struct.pack("<II", len(content), zlib.crc32(content)) + content

    def send(self):
        while not stopped.is_set():
            running.wait()
            if stopped.is_set() or not self.room.acquire(timeout=1):
                continue
            content = self.random.randbytes(self.random.choice((1, 100, 3000, 40000)))
            self.under_way.append((content, time.monotonic()))
            self.socket.sendall(self.frame(content))

    def read(self, length):
        data = bytearray()
        while len(data) < length:
            more = self.socket.recv(length - len(data))
            if not more:
                raise EOFError("the server has closed the connection")
            data += more
        return bytes(data)

    def receive(self):
        while True:
            length, check = struct.unpack("<II", self.read(8))
            content = self.read(length)
            sent, when = self.under_way[0]
            if zlib.crc32(content) != check or content != sent[::-1]:
                raise ValueError(f"answer {self.frames} is not that to the frame")
            self.longest = max(self.longest, time.monotonic() - when)
            self.frames += 1
            self.under_way.popleft()
            self.room.release()


def guard(call):
    try:
        call()
    except BaseException as error:
        if ending.is_set():
            return
        print("failed", type(error).__name__, error, flush=True)
        os._exit(1)


connections = [Connection(number) for number in range(count)]


def frames():
    return sum(connection.frames for connection in connections)


def wait(done, what):
    until = time.monotonic() + 100
    while not done():
        if time.monotonic() > until:
            print("failed", what, flush=True)
            os._exit(1)
        time.sleep(0.01)


def quiet():
    return not any(connection.under_way for connection in connections)


def severed():
    before = frames()
    time.sleep(1)
    return frames() == before and not quiet()


for line in sys.stdin:
    word = line.strip()
    if word == "go":
        running.set()
        before = frames()
        wait(lambda: frames() >= before + 20 * count, "no answers come")
    elif word == "sever":
        wait(severed, "answers come")
    elif word in ("pause", "stop", "end"):
        running.clear()
        time.sleep(0.05)
        wait(quiet, f"{sum(len(one.under_way) for one in connections)} answers are missing")
    if word == "end":
        ending.set()
        connections[0].socket.sendall(connections[0].frame(b"end"))
    longest = max(connection.longest for connection in connections)
    print("ok", frames(), round(longest * 1000), flush=True)
    if word in ("stop", "end"):
        os._exit(0)
