"""Timeouts of threads and of an event loop, all reckoned by the monotonic clock, which never jumps."""

import asyncio
import queue
import sys
import threading
import time

import guest

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 40
WAIT = 0.15
JUMP = 60

stop = False
counts = {}
never = threading.Event()
held = threading.Lock()
held.acquire()
empty = queue.Queue()
condition = threading.Condition()


def by_condition():
    with condition:
        assert not condition.wait(WAIT)


def by_queue():
    try:
        empty.get(timeout=WAIT)
        raise AssertionError("something came")
    except queue.Empty:
        pass


def again_and_again(name, wait):
    while not stop:
        begin = time.monotonic()
        wait()
        took = time.monotonic() - begin
        assert WAIT * 0.99 <= took < JUMP, f"{name} took {took}"
        counts[name] = counts.get(name, 0) + 1


async def by_loop():
    loop = asyncio.get_running_loop()
    while not stop:
        begin = loop.time()
        await asyncio.sleep(WAIT)
        done = loop.create_future()
        loop.call_at(loop.time() + WAIT, done.set_result, None)
        await asyncio.wait_for(done, JUMP)
        try:
            await asyncio.wait_for(loop.create_future(), WAIT)
            raise AssertionError("it came to an end")
        except asyncio.TimeoutError:
            pass
        took = loop.time() - begin
        assert 3 * WAIT * 0.99 <= took < JUMP, f"three waits took {took}"
        counts["loop"] = counts.get("loop", 0) + 1


ways = {
    "condition": by_condition,
    "event": lambda: never.wait(WAIT),
    "lock": lambda: held.acquire(timeout=WAIT),
    "queue": by_queue,
    "sleep": lambda: time.sleep(WAIT),
}
failures = []
threading.excepthook = failures.append
threads = [threading.Thread(target=again_and_again, args=way) for way in ways.items()]
threads.append(threading.Thread(target=asyncio.run, args=(by_loop(),)))
for thread in threads:
    thread.start()

last = time.monotonic()
for step in range(1, STEPS + 1):
    guest.step(step)
    now = time.monotonic()
    assert 0 <= now - last < JUMP, f"the clock went from {last} to {now}"
    last = now
    assert not failures, failures

stop = True
for thread in threads:
    thread.join()
assert not failures, failures
assert sorted(counts) == sorted([*ways, "loop"]), counts
guest.line("ok clocks")
