"""A cable between two network namespaces that can be bad: wire.py A B.

Makes two TUN devices, prints their names, and carries packets from one to the other. Who started it puts them where they
are wanted. Lines on standard input say what happens to packets from then on, whichever way they go:

    ok            nothing
    delay MS      they come so much later
    loss PERCENT  so many do not come, at random
    rate BITS     so many bits come in a second
    dead          none comes

Ends with standard input.
"""
import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TUN = 1
IFF_NO_PI = 0x1000
# More than any device here lets through at once.
PACKET = 65536
# What waits longer than that is dropped, as a router's queue does when it is full.
QUEUE = 1.0


def tun(name):
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return device


ends = [tun(name) for name in sys.argv[1:3]]
print("ready", flush=True)
delay, loss, rate, dead = 0.0, 0.0, 0.0, False
free = [0.0, 0.0]  # When the cable has room for the next packet, by direction.
coming = []
count = 0
waiting = select.poll()
for device in [0, *ends]:
    waiting.register(device, select.POLLIN)
while True:
    now = time.monotonic()
    while coming and coming[0][0] <= now:
        _, _, to, packet = heapq.heappop(coming)
        try:
            os.write(ends[to], packet)
        except OSError:
            pass  # The device is down, or full.
    timeout = (coming[0][0] - now) * 1000 if coming else None
    for device, _ in waiting.poll(timeout):
        if device == 0:
            line = os.read(0, 100).decode().split()
            if not line:
                sys.exit(0)
            delay, loss, rate, dead = 0.0, 0.0, 0.0, line[0] == "dead"
            if line[0] == "delay":
                delay = float(line[1]) / 1000
            elif line[0] == "loss":
                loss = float(line[1]) / 100
            elif line[0] == "rate":
                rate = float(line[1])
            print("done", flush=True)
            continue
        end = ends.index(device)
        for _ in range(64):
            try:
                packet = os.read(device, PACKET)
            except OSError:
                break  # There is no more, or the device is down.
            now = time.monotonic()
            at = now
            if rate:
                at = max(now, free[end])
                if at - now > QUEUE:
                    continue
                at += len(packet) * 8 / rate
                free[end] = at
            if not dead and random.random() >= loss:
                count += 1
                heapq.heappush(coming, (at + delay, count, 1 - end, packet))
