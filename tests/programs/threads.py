"""Threads that fill arrays, dictionaries and queues, and pass objects to each other."""

import hashlib
import queue
import sys
import threading

import guest

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 40
THREADS = 4

work, results = queue.Queue(), queue.Queue()


def worker(me):
    own = {}
    while True:
        item = work.get()
        if item is None:
            results.put((me, sum(own.values())))
            return
        number, text = item
        own[number] = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
        results.put((number, own[number]))


threads = [threading.Thread(target=worker, args=(n,), name=f"worker-{n}") for n in range(THREADS)]
for thread in threads:
    thread.start()

array, event = [], threading.Event()
ticker_count = [0]


def ticker():
    while not event.wait(0.02):
        ticker_count[0] += 1


timer = threading.Thread(target=ticker)
timer.start()

digest = hashlib.sha256()
for step in range(1, STEPS + 1):
    guest.step(step)
    for k in range(50):
        number = step * 50 + k
        array.append(number)
        work.put((number, f"{number}" * 20))
    got = dict(results.get(timeout=60) for _ in range(50))
    assert sorted(got) == array[-50:], "a result is missing or was given twice"
    digest.update(repr(sorted(got.items())).encode())

for _ in threads:
    work.put(None)
total = sum(results.get(timeout=60)[1] for _ in threads)
event.set()
for thread in [*threads, timer]:
    thread.join()
assert array == list(range(50, STEPS * 50 + 50))
digest.update(str(total).encode())
guest.line(f"ok threads {len(array)} {digest.hexdigest()[:16]}")
