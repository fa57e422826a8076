"""A server in its own process, and clients in this one that check every answer: servers.py KIND STEPS."""
import asyncio
import hashlib
import http.client
import os
import random
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request

HOST = "127.0.0.1"


def limit():
    try:
        with open(os.environ["GUEST_LIMIT"]) as file:
            return int(file.read())
    except (KeyError, OSError, ValueError):
        return 1 << 62


def free_port():
    with socket.socket() as found:
        found.bind((HOST, 0))
        return found.getsockname()[1]


def start(*command, **more):
    log = open("server.log", "ab")
    more.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.Popen(command, stdout=log, stderr=log, **more)


def connect(port):
    for _ in range(2000):
        try:
            return socket.create_connection((HOST, port))
        except ConnectionRefusedError:
            time.sleep(0.005)
    raise TimeoutError(f"nobody listens on {port}")


def content(step, size):
    return random.Random(step).randbytes(size)


def ended(server, code=0):
    found = server.wait()
    assert found == code, f"the server ended with {found}"


class Lines:
    """A connection over which lines and counted bytes come."""

    def __init__(self, port):
        self.socket = connect(port)
        self.file = self.socket.makefile("rb")

    def send(self, data):
        self.socket.sendall(data)

    def line(self):
        line = self.file.readline()
        assert line.endswith(b"\r\n"), line
        return line[:-2]

    def bytes(self, count):
        data = self.file.read(count + 2)
        assert len(data) == count + 2 and data.endswith(b"\r\n"), len(data)
        return data[:-2]

    def close(self):
        self.file.close()
        self.socket.close()


class Redis:
    """Counters, values and a list, written to the append-only file and saved by forked children."""

    def __init__(self):
        self.port = free_port()
        self.server = self.start()
        self.clients = [Lines(self.port) for _ in range(5)]
        self.count = 0

    def start(self):
        return start("redis-server", "--port", str(self.port), "--bind", HOST, "--save", "",
                     "--appendonly", "yes", "--appendfsync", "everysec", "--dir", ".")

    def ask(self, client, *words):
        words = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        client.send(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))
        kind = client.line()
        if kind[:1] == b"$":
            return client.bytes(int(kind[1:]))
        assert kind[:1] in b":+", kind
        return int(kind[1:]) if kind[:1] == b":" else kind[1:]

    def step(self, step):
        for client in self.clients:
            client.send(b"INCR counter\r\n" * 20)
        # Each value is given once, and each client's grow.
        found = []
        for client in self.clients:
            own = [int(client.line()[1:]) for _ in range(20)]
            assert own == sorted(own), own
            found += own
        assert sorted(found) == list(range(self.count + 1, self.count + 101)), sorted(found)
        self.count += 100
        client = self.clients[step % 5]
        assert self.ask(client, "SET", f"value{step % 50}", content(step, 20000)) == b"OK"
        assert self.ask(client, "GET", f"value{step % 50}") == content(step, 20000)
        assert self.ask(client, "RPUSH", "list", step) == step
        if step % 40 == 20:
            self.ask(client, "BGSAVE", "SCHEDULE")
        if step % 40 == 0:
            self.ask(client, "BGREWRITEAOF")

    def finish(self, steps):
        self.clients[0].send(b"SHUTDOWN\r\n")
        ended(self.server)
        # What it reads from its files is what it had.
        self.server = self.start()
        client = Lines(self.port)
        while True:
            client.send(b"PING\r\n")
            if client.line() == b"+PONG":
                break
            time.sleep(0.01)
        assert self.ask(client, "INCR", "counter") == steps * 100 + 1
        assert self.ask(client, "LLEN", "list") == steps
        for step in range(max(1, steps - 49), steps + 1):
            assert self.ask(client, "GET", f"value{step % 50}") == content(step, 20000)
        client.send(b"SHUTDOWN\r\n")
        ended(self.server)


class Memcached:
    """Counters and values over TCP with four threads, and asked over UDP."""

    def __init__(self):
        self.port = free_port()
        self.server = start("memcached", "-p", str(self.port), "-U", str(self.port), "-l", HOST,
                            "-t", "4", *(["-u", "root"] if os.getuid() == 0 else []))
        self.clients = [Lines(self.port) for _ in range(10)]
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.connect((HOST, self.port))
        self.store(self.clients[0], "counter", b"0")

    def store(self, client, name, data):
        client.send(b"set %s 0 0 %d\r\n%s\r\n" % (name.encode(), len(data), data))
        assert client.line() == b"STORED"

    def step(self, step):
        for turn, client in enumerate(self.clients):
            name = f"value{turn}-{step % 20}"
            self.store(client, name, content(step + turn, 5000))
            client.send(b"get %s\r\n" % name.encode())
            assert client.line() == b"VALUE %s 0 5000" % name.encode()
            assert client.bytes(5000) == content(step + turn, 5000)
            assert client.line() == b"END"
            client.send(b"incr counter 1\r\n")
            assert client.line() == b"%d" % ((step - 1) * 10 + turn + 1)
        self.udp.send(b"%c%c\0\0\0\1\0\0get counter\r\n" % (step >> 8, step & 255))
        answer = self.udp.recv(2000)
        assert answer[:2] == bytes([step >> 8, step & 255]), answer
        assert answer[8:].split(b"\r\n")[1] == b"%d" % (step * 10), answer

    def finish(self, steps):
        self.server.terminate()
        ended(self.server)


NGINX = """
worker_processes 4;
daemon off;
pid nginx.pid;
error_log error.log;
events { worker_connections 100; }
http {
    access_log access.log;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    sendfile on;
    gzip on; gzip_types *; gzip_min_length 1;
    server { listen 127.0.0.1:PORT; root files; }
    server { listen 127.0.0.1:PROXY; location / { proxy_pass http://127.0.0.1:PORT; } }
}
"""


class Nginx:
    """A master and four workers, asked for files directly and through a proxy, over old and new connections."""

    def __init__(self):
        self.port, proxy = free_port(), free_port()
        os.mkdir("files")
        self.sums = []
        for number in range(20):
            data = content(number, 1 + number ** 4)
            with open(f"files/{number}", "wb") as file:
                file.write(data)
            self.sums.append(hashlib.sha256(data).digest())
        text = NGINX.replace("PORT", str(self.port)).replace("PROXY", str(proxy))
        if os.getuid() == 0:
            text = "user root;" + text
        with open("nginx.conf", "w") as file:
            file.write(text)
        self.server = start("nginx", "-p", os.getcwd() + "/", "-c", "nginx.conf", "-e", "error.log")
        connect(self.port).close()
        self.proxy = proxy
        self.kept = [http.client.HTTPConnection(HOST, port) for port in [self.port, proxy] * 3]

    def check(self, number, data):
        assert hashlib.sha256(data).digest() == self.sums[number], f"file {number}: {len(data)} bytes"

    def step(self, step):
        # All asked before any is read: the answers wait in the sockets.
        for turn, connection in enumerate(self.kept):
            connection.request("GET", f"/{(step + turn) % 20}")
        for turn, connection in enumerate(self.kept):
            self.check((step + turn) % 20, connection.getresponse().read())
        for port in self.port, self.proxy:
            with urllib.request.urlopen(f"http://{HOST}:{port}/{step % 20}") as answer:
                self.check(step % 20, answer.read())

    def finish(self, steps):
        for connection in self.kept:
            connection.close()
        self.server.send_signal(3)
        ended(self.server)


class Openssl:
    """A server and a client of TLS, and a client of ours; both get what they send, each line reversed."""

    def __init__(self):
        self.port = free_port()
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                        "-nodes", "-keyout", "key", "-out", "certificate", "-subj", "/CN=here"],
                       check=True, capture_output=True)
        self.servers = [start("openssl", "s_server", "-accept", f"{HOST}:{port}", "-key", "key", "-cert",
                              "certificate", "-rev", "-quiet", "-naccept", "1")
                        for port in (self.port, self.port + 1)]
        for port in self.port, self.port + 1:
            self.wait_listening(port)
        self.client = subprocess.Popen(
            ["openssl", "s_client", "-connect", f"{HOST}:{self.port}", "-quiet", "-verify_quiet",
             "-CAfile", "certificate"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        context = ssl.create_default_context(cafile="certificate")
        context.check_hostname = False
        self.own = context.wrap_socket(connect(self.port + 1))
        self.lines = self.own.makefile("rb")

    def wait_listening(self, port):
        """Without connecting: it serves one client only."""
        entry = f"0100007F:{port:04X} 00000000:0000 0A"
        while True:
            with open("/proc/net/tcp") as sockets:
                if entry in sockets.read():
                    return
            time.sleep(0.005)

    def step(self, step):
        for turn in range(5):
            line = content(step * 5 + turn, 1000).hex().encode()
            self.client.stdin.write(line + b"\n")
            self.client.stdin.flush()
            self.own.sendall(line + b"\n")
            assert self.client.stdout.readline() == line[::-1] + b"\n"
            assert self.lines.readline() == line[::-1] + b"\n"

    def finish(self, steps):
        # It does not end with its input.
        self.client.terminate()
        self.client.wait()
        self.lines.close()
        self.own.close()
        for server in self.servers:
            ended(server)


class Socat:
    """TCP to a unix socket to TCP, a program behind a pipe, and one behind a terminal; each client's in processes of its own."""

    def __init__(self):
        tcp, other, pty = free_port(), free_port(), free_port()
        self.servers = [
            start("socat", f"TCP-LISTEN:{other},bind={HOST},fork,reuseaddr", "EXEC:cat"),
            start("socat", "UNIX-LISTEN:middle,fork", f"TCP:{HOST}:{other}"),
            start("socat", f"TCP-LISTEN:{tcp},bind={HOST},fork,reuseaddr", "UNIX-CONNECT:middle"),
            start("socat", f"TCP-LISTEN:{pty},bind={HOST},fork,reuseaddr", "EXEC:cat,pty,setsid,rawer"),
        ]
        while not os.path.exists("middle"):
            time.sleep(0.005)
        time.sleep(0.2)
        self.clients = [connect(port) for port in [tcp] * 3 + [pty] * 3]

    def step(self, step):
        for turn, client in enumerate(self.clients):
            client.sendall(content(step + turn, 3000))
        for turn, client in enumerate(self.clients):
            data = b""
            while len(data) < 3000:
                more = client.recv(3000 - len(data))
                assert more, "the chain has ended"
                data += more
            assert data == content(step + turn, 3000), f"client {turn}"

    def finish(self, steps):
        for client in self.clients:
            client.close()
        for server in self.servers:
            server.terminate()
            ended(server, 143)


class Http:
    """Python's own server, a thread for each request, and urllib."""

    def __init__(self):
        self.port = free_port()
        os.mkdir("files")
        for number in range(10):
            with open(f"files/{number}", "wb") as file:
                file.write(content(number, 30000 * number))
        self.server = start(sys.executable, "-m", "http.server", str(self.port), "--bind", HOST,
                            "--directory", "files")
        connect(self.port).close()

    def step(self, step):
        def ask(number):
            with urllib.request.urlopen(f"http://{HOST}:{self.port}/{number}") as answer:
                if answer.read() == content(number, 30000 * number):
                    right.append(number)

        right = []
        threads = [threading.Thread(target=ask, args=((step + turn) % 10,)) for turn in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(right) == 4, right

    def finish(self, steps):
        self.server.terminate()
        ended(self.server, -15)


class Asyncio:
    """An echo server of coroutines, and 50 clients of it that are coroutines here."""

    def __init__(self):
        self.port = free_port()
        self.server = start(sys.executable, __file__, "echo", str(self.port))
        connect(self.port).close()
        self.loop = asyncio.new_event_loop()
        self.clients = [self.loop.run_until_complete(asyncio.open_connection(HOST, self.port))
                        for _ in range(50)]

    def step(self, step):
        async def one(turn, reader, writer):
            data = content(step + turn, 4000)
            writer.write(data)
            await asyncio.sleep(0.001 * (turn % 5))
            assert await reader.readexactly(4000) == data, f"client {turn}"

        async def every():
            await asyncio.gather(*(one(turn, *client) for turn, client in enumerate(self.clients)))

        self.loop.run_until_complete(every())

    def finish(self, steps):
        for _, writer in self.clients:
            writer.close()
        self.server.terminate()
        ended(self.server, -15)


def echo(port):
    async def answer(reader, writer):
        while data := await reader.read(1500):
            writer.write(data)
            await writer.drain()

    async def serve():
        async with await asyncio.start_server(answer, HOST, port) as server:
            await server.serve_forever()

    asyncio.run(serve())


def main():
    kind, steps = sys.argv[1], int(sys.argv[2])
    if kind == "echo":
        echo(steps)
        return
    server = globals()[kind.capitalize()]()
    for step in range(1, steps + 1):
        while limit() < step:
            time.sleep(0.005)
        time.sleep(0.005)
        os.write(1, f"step {step}\n".encode())
        server.step(step)
    server.finish(steps)
    os.write(1, b"ok\n")


if __name__ == "__main__":
    main()
