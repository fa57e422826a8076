"""Processes of multiprocessing: a pool, queues, a lock, a shared value and a manager's dictionary."""

import hashlib
import multiprocessing as mp
import sys

import guest


def square(number):
    return number, hashlib.sha256(str(number).encode()).hexdigest()[:8]


def count(lock, value, tasks, results):
    for number in iter(tasks.get, None):
        with lock:
            value.value += number
        results.put(number * 2)


def main():
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    mp.set_start_method("fork")
    lock, value = mp.Lock(), mp.Value("q", 0, lock=False)
    tasks, results = mp.Queue(), mp.Queue()
    counters = [mp.Process(target=count, args=(lock, value, tasks, results)) for _ in range(3)]
    for counter in counters:
        counter.start()
    digest, expected = hashlib.sha256(), 0
    with mp.Pool(3) as pool:
        for step in range(1, steps + 1):
            guest.step(step)
            digest.update(repr(pool.map(square, range(step, step + 30))).encode())
            for number in range(10):
                tasks.put(step + number)
                expected += step + number
            got = sorted(results.get(timeout=60) for _ in range(10))
            assert got == [2 * (step + number) for number in range(10)]
    for _ in counters:
        tasks.put(None)
    for counter in counters:
        counter.join()
        assert counter.exitcode == 0
    assert value.value == expected
    guest.line(f"ok pool {expected} {digest.hexdigest()[:16]}")


if __name__ == "__main__":
    main()
