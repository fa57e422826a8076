"""A parent and two workers that count together; each step is appended to the file `witness`."""

import ctypes
import os
import signal
import sys

import guest


def work(numbers, results):
    for line in numbers:
        number = int(line)
        results.write(f"{number * number}\n")
        results.flush()


def worker(others):
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(to_write)
        os.close(from_read)
        for _, numbers, _ in others:
            os.close(numbers.fileno())
        work(os.fdopen(to_read), os.fdopen(from_write, "w"))
        os._exit(0)
    os.close(to_read)
    os.close(from_write)
    return child, os.fdopen(to_write, "w"), os.fdopen(from_read)


def main():
    steps, crash = int(sys.argv[1]), (sys.argv[2:] or [""])[0]
    workers = []
    while len(workers) < 2:
        workers.append(worker(workers))
    witness = os.open("witness", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    total = 0
    for step in range(1, steps + 1):
        guest.step(step)
        if crash == "crash" and step > 30:
            ctypes.string_at(0)
        if crash == "murder" and step % 10 == 0:
            child, numbers, results = workers.pop()
            os.kill(child, signal.SIGKILL)
            assert os.waitpid(child, 0) == (child, signal.SIGKILL)
            workers.append(worker(workers))
        os.write(witness, f"{step}\n".encode())
        for number, (_, numbers, results) in enumerate(workers):
            numbers.write(f"{step + number}\n")
            numbers.flush()
            got = int(results.readline())
            assert got == (step + number) ** 2, got
            total += got
    expected = sum(step**2 + (step + 1) ** 2 for step in range(1, steps + 1))
    assert total == expected
    for child, numbers, _ in workers:
        numbers.close()
        assert os.waitpid(child, 0) == (child, 0)
    guest.line(f"ok workers {total}")


if __name__ == "__main__":
    main()
