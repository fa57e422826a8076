"""A server of shared objects in another process, asked over unix sockets by two threads and a child."""
import multiprocessing
import os
import sys
import threading
import time
from multiprocessing.managers import BaseManager

import guest


class Box:
    def __init__(self):
        self.values = {}
        self.lock = threading.Lock()

    def add(self, name, value):
        with self.lock:
            self.values[name] = self.values.get(name, 0) + value
            return self.values[name]

    def get(self, name):
        return self.values.get(name, 0)


class Manager(BaseManager):
    pass


Manager.register("Box", Box)


def main():
    steps = int(sys.argv[1])
    context = multiprocessing.get_context("fork")
    manager = Manager(ctx=context)
    manager.start()
    box = manager.Box()
    one, other = context.Pipe()
    echo = context.Process(target=answer, args=(other, one))
    echo.start()
    other.close()
    threads = [threading.Thread(target=many, args=(box, f"thread{i}", steps * 5)) for i in range(2)]
    for thread in threads:
        thread.start()
    for step in range(1, steps + 1):
        while guest.limit() < step:
            time.sleep(0.005)
        time.sleep(0.005)
        os.write(1, f"step {step}\n".encode())
        assert box.add("main", step) == step * (step + 1) // 2
        one.send({"step": step, "bytes": b"x" * 20000})
        back = one.recv()
        assert back == {"step": -step, "bytes": b"x" * 20000}, back
    for thread in threads:
        thread.join()
    one.send(None)
    echo.join()
    found = [box.get(f"thread{i}") for i in range(2)]
    assert found == [steps * 5] * 2, found
    manager.shutdown()
    os.write(1, f"ok {found} {echo.exitcode}\n".encode())


def many(box, name, count):
    for turn in range(1, count + 1):
        assert box.add(name, 1) == turn


def answer(pipe, others):
    others.close()
    while True:
        message = pipe.recv()
        if message is None:
            sys.exit(7)
        message["step"] = -message["step"]
        pipe.send(message)


if __name__ == "__main__":
    main()
