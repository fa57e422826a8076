"""A server in its own process, and clients in this one that check every answer: servers.py KIND STEPS.

servers.py outside KIND DIR NUMBER is a client that is no part of the job: it finds the server by the file `port` in DIR,
says when it had to connect again, and checks that what was answered to it, and to no client of another number, is still
there."""
import asyncio
import glob
import hashlib
import http.client
import multiprocessing
import multiprocessing.connection
import os
import random
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

import guest

HOST = "127.0.0.1"


def free_port():
    """One that nobody is given who asks for any (net.ipv4.ip_local_port_range): a restart wants it again."""
    while True:
        port = random.randrange(10000, 30000)
        try:
            with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
                tcp.bind((HOST, port))
                udp.bind((HOST, port))
                return port
        except OSError:
            continue


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


def found_at(port):
    """Tells clients outside of the job."""
    with open("port.new", "w") as file:
        file.write(str(port))
    os.rename("port.new", "port")


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
        if not line:
            raise ConnectionResetError("the other end has hung up")
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
        found_at(self.port)

    def start(self):
        return start("redis-server", "--port", str(self.port), "--bind", HOST, "--save", "",
                     "--appendonly", "yes", "--appendfsync", "everysec", "--dir", ".")

    def ask(self, client, *words):
        words = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        client.send(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))
        kind = client.line()
        if kind[:1] == b"$":
            return client.bytes(int(kind[1:]))
        assert kind[:1] in b":+-", kind
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
        found_at(self.port)

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
        found_at(self.port)

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
    """Two servers of TLS: lines that come back reversed over one connection, and files over many, also to s_client."""

    def __init__(self):
        self.lines_port, self.port = free_port(), free_port()
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                        "-nodes", "-keyout", "key", "-out", "certificate", "-subj", "/CN=here"],
                       check=True, capture_output=True)
        for number in range(5):
            with open(f"file{number}", "wb") as file:
                file.write(content(number, 40000 * number))
        self.servers = [start("openssl", "s_server", "-accept", f"{HOST}:{port}", "-key", "key", "-cert", "certificate",
                              "-quiet", how)
                        for port, how in ((self.lines_port, "-rev"), (self.port, "-WWW"))]
        self.context = ssl.create_default_context(cafile="certificate")
        self.context.check_hostname = False
        self.own = self.context.wrap_socket(connect(self.lines_port))
        self.lines = self.own.makefile("rb")
        connect(self.port).close()
        found_at(self.port)

    def step(self, step):
        for turn in range(5):
            line = content(step * 5 + turn, 1000).hex().encode()
            self.own.sendall(line + b"\n")
            assert self.lines.readline() == line[::-1] + b"\n"
        number = step % 5
        with self.context.wrap_socket(connect(self.port)) as asked:
            asked.sendall(b"GET /file%d HTTP/1.0\r\n\r\n" % number)
            self.check(number, asked.makefile("rb").read())
        if number == 0:
            found = subprocess.run(["openssl", "s_client", "-connect", f"{HOST}:{self.port}", "-quiet", "-verify_quiet",
                                    "-ign_eof", "-CAfile", "certificate"],
                                   input=b"GET /file4 HTTP/1.0\r\n\r\n", stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL)
            self.check(4, found.stdout)

    def check(self, number, answer):
        found = answer.split(b"\r\n\r\n", 1)[-1]
        assert found == content(number, 40000 * number), f"file {number}: {answer[:200]}, {len(answer)} bytes"

    def finish(self, steps):
        self.lines.close()
        self.own.close()
        for server in self.servers:
            server.terminate()
            ended(server, -15)


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
        found_at(tcp)

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
        found_at(self.port)

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
        found_at(self.port)

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


class Postgres:
    """Transactions of four clients, over TCP and a unix socket, and what the files hold in the end."""

    def __init__(self):
        self.programs = max(glob.glob("/usr/lib/postgresql/*/bin"))
        self.port = free_port()
        subprocess.run([f"{self.programs}/initdb", "-D", "data", "-A", "trust", "-U", "me", "--no-sync"], check=True,
                       capture_output=True)
        self.begin()
        self.clients = [self.client(host) for host in [HOST, os.getcwd()] * 2]
        self.ask(self.clients[0], "create table rows (step int, client int, data text);"
                 " create table outside (client int, step int); select 'made'", "made")
        found_at(self.port)

    def begin(self):
        self.server = start(f"{self.programs}/postgres", "-D", "data", "-k", os.getcwd(), "-p", str(self.port),
                            "-c", f"listen_addresses={HOST}", "-c", "fsync=off", "-c", "checkpoint_timeout=30s")
        asked = [f"{self.programs}/pg_isready", "-q", "-h", HOST, "-p", str(self.port)]
        while subprocess.run(asked).returncode != 0:
            assert self.server.poll() is None, "there is no server"
            time.sleep(0.02)

    def client(self, host):
        return subprocess.Popen(["psql", "-h", host, "-p", str(self.port), "-U", "me", "-X", "-qtA", "-v",
                                 "ON_ERROR_STOP=1", "postgres"],
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, client, question, answer):
        client.stdin.write(f"{question};\n".encode())
        client.stdin.flush()
        found = client.stdout.readline().decode()
        assert found == f"{answer}\n", f"{found!r} instead of {answer!r}"

    def step(self, step):
        data = content(step, 500).hex()
        for turn, client in enumerate(self.clients):
            self.ask(client, f"begin; insert into rows values ({step}, {turn}, '{data}');"
                     f" select count(*) from rows where client = {turn} and data <> '' ", step)
        self.ask(self.clients[step % 4], f"commit; select count(*) from rows where step = {step}", 1)
        for turn, client in enumerate(self.clients):
            if turn != step % 4:
                client.stdin.write(b"commit;\n")
                client.stdin.flush()
        if step % 40 == 0:
            self.ask(self.clients[0], "vacuum rows; checkpoint; select 'done'", "done")

    def finish(self, steps):
        for client in self.clients:
            client.stdin.close()
            ended(client)
        self.server.send_signal(2)
        ended(self.server)
        self.begin()
        client = self.client(HOST)
        self.ask(client, "select count(*), count(distinct data), sum(step) from rows",
                 f"{4 * steps}|{steps}|{4 * steps * (steps + 1) // 2}")
        client.stdin.close()
        ended(client)
        self.server.send_signal(2)
        ended(self.server)


class Mariadb:
    """Transactions of four clients, over TCP and a unix socket; tables by AIO of the kernel; and what the files hold in the end."""

    def __init__(self):
        self.port = free_port()
        self.options = ["--no-defaults", f"--datadir={os.getcwd()}/data", *(["--user=root"] if os.geteuid() == 0 else [])]
        subprocess.run(["mariadb-install-db", *self.options, "--auth-root-authentication-method=normal", "--skip-test-db"],
                       check=True, capture_output=True)
        self.begin()
        self.clients = [self.client(protocol) for protocol in ("tcp", "socket") * 2]
        # By io_uring, or where there is none, by AIO.
        self.ask(self.clients[0], "select @@innodb_use_native_aio", 1)
        self.ask(self.clients[0], "create database d; create table d.t (step int, client int, data text,"
                 " primary key (step, client)); create table d.outside (client int, step int); select 'made'", "made")
        found_at(self.port)

    def begin(self):
        self.server = start("mariadbd", *self.options, f"--port={self.port}", f"--bind-address={HOST}",
                            f"--socket={os.getcwd()}/sock", f"--pid-file={os.getcwd()}/pid", "--innodb-buffer-pool-size=8M",
                            "--innodb-max-dirty-pages-pct=0", "--innodb-flush-log-at-trx-commit=1")
        asked = ["mariadb-admin", "--no-defaults", "--user=root", "--host", HOST, "--port", str(self.port), "ping"]
        while subprocess.run(asked, capture_output=True).returncode != 0:
            assert self.server.poll() is None, "there is no server"
            time.sleep(0.02)

    def client(self, protocol, folder="."):
        return subprocess.Popen(["mariadb", "--no-defaults", "--user=root", f"--protocol={protocol}", "--host", HOST, "--port",
                                 str(self.port), "--socket", f"{os.path.abspath(folder)}/sock", "--batch", "--skip-column-names",
                                 "--unbuffered", "--skip-reconnect"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, client, question, answer):
        Postgres.ask(self, client, question, answer)

    def step(self, step):
        data = content(step, 5000).hex()
        for turn, client in enumerate(self.clients):
            self.ask(client, f"begin; insert into d.t values ({step}, {turn}, '{data}');"
                     f" select count(*) from d.t where client = {turn} and data <> ''", step)
        self.ask(self.clients[step % 4], f"commit; select count(*) from d.t where step = {step}", 1)
        for turn, client in enumerate(self.clients):
            if turn != step % 4:
                self.ask(client, "commit; select 'done'", "done")

    def finish(self, steps):
        for client in self.clients:
            client.stdin.close()
            ended(client)
        self.server.send_signal(15)
        ended(self.server)
        self.begin()
        client = self.client("tcp")
        self.ask(client, "select count(*), count(distinct data), sum(step), sum(length(data)) from d.t",
                 f"{4 * steps}\t{steps}\t{2 * steps * (steps + 1)}\t{40000 * steps}")
        self.ask(client, "check table d.t extended", "d.t\tcheck\tstatus\tOK")
        client.stdin.close()
        ended(client)
        self.server.send_signal(15)
        ended(self.server)


class Dbus:
    """A bus with one who listens to all that is said there, in the order in which it was, and many who say it."""

    def __init__(self):
        self.port = "bus"
        with open("bus.conf", "w") as file:
            file.write("<busconfig><type>session</type><listen>unix:path=bus</listen><auth>EXTERNAL</auth>"
                       "<policy context='default'><allow send_destination='*' eavesdrop='true'/><allow eavesdrop='true'/>"
                       "<allow own='*'/></policy></busconfig>")
        self.server = start("dbus-daemon", "--config-file=bus.conf", "--nofork", "--nopidfile")
        while not os.path.exists("bus"):
            time.sleep(0.005)
        self.environment = dict(os.environ, DBUS_SESSION_BUS_ADDRESS="unix:path=bus")
        self.listener = subprocess.Popen(["dbus-monitor", "--session", "type='signal',interface='a.b'"],
                                         stdout=subprocess.PIPE, env=self.environment)
        # It listens when it has given up its name.
        while b"member=NameLost" not in self.listener.stdout.readline():
            assert self.listener.poll() is None, "nobody listens"
        self.id = self.ask()
        found_at(os.path.abspath("bus"))

    def say(self, name, number):
        subprocess.run(["dbus-send", "--session", "--type=signal", "/here", f"a.b.{name}", f"int32:{number}"],
                       check=True, env=self.environment)

    def ask(self):
        found = subprocess.run(["dbus-send", "--session", "--print-reply", "--dest=org.freedesktop.DBus", "/",
                                "org.freedesktop.DBus.GetId"],
                               check=True, env=self.environment, capture_output=True).stdout
        return found.splitlines()[1]

    def heard(self, name, number, count):
        found = []
        while len(found) < count:
            line = self.listener.stdout.readline().decode()
            assert line, "the one who listens has ended"
            if "interface=a.b" in line:
                said = line.split("member=")[1].strip()
                found.append((said, int(self.listener.stdout.readline().split()[1])))
        assert sorted(found) == [(name, number + turn) for turn in range(count)], found

    def step(self, step):
        said = [threading.Thread(target=self.say, args=("said", 3 * step + turn)) for turn in range(3)]
        for thread in said:
            thread.start()
        for thread in said:
            thread.join()
        self.heard("said", 3 * step, 3)
        assert self.ask() == self.id

    def finish(self, steps):
        self.listener.terminate()
        self.listener.wait()
        self.server.terminate()
        ended(self.server)


class Agent:
    """ssh-agent, which holds a key and signs with it. It is setgid, which the kernel is told not to heed."""

    def __init__(self):
        path = os.path.abspath("agent")
        self.server = start("setpriv", "--no-new-privs", "ssh-agent", "-D", "-a", path)
        while not os.path.exists(path):
            time.sleep(0.005)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "key"], check=True)
        subprocess.run(["ssh-add", "-q", "key"], check=True, env=dict(os.environ, SSH_AUTH_SOCK=path))
        self.clients = []
        for _ in range(3):
            client = socket.socket(socket.AF_UNIX)
            client.connect(path)
            self.clients.append(client)
        self.key = self.keys(self.clients[0])
        found_at(path)

    def ask(self, client, question):
        client.sendall(struct.pack(">I", len(question)) + question)
        data = b""
        while len(data) < 4 or len(data) < 4 + struct.unpack(">I", data[:4])[0]:
            more = client.recv(4096)
            if not more:
                raise ConnectionResetError("the agent has hung up")
            data += more
        return data[4:]

    def keys(self, client):
        answer = self.ask(client, b"\x0b")
        assert answer[:5] == b"\x0c\0\0\0\1", answer
        return answer[9:9 + struct.unpack(">I", answer[5:9])[0]]

    def sign(self, client, data):
        field = lambda bytes: struct.pack(">I", len(bytes)) + bytes
        answer = self.ask(client, b"\x0d" + field(self.key) + field(data) + b"\0\0\0\0")
        assert answer[:1] == b"\x0e", answer
        return answer

    def step(self, step):
        # That of one text is always the same.
        signatures = {self.sign(client, content(step, 2000)) for client in self.clients}
        assert len(signatures) == 1 and signatures != {self.sign(self.clients[0], b"another")}
        assert self.keys(self.clients[step % 3]) == self.key

    def finish(self, steps):
        for client in self.clients:
            client.close()
        self.server.terminate()
        self.server.wait()


class Served:
    """A program that does many things at once, and tells how often; clients that have it reckon sums of what they say."""

    def __init__(self):
        self.port = free_port()
        self.server = start(*(part.format(here=os.path.dirname(__file__), port=self.port) for part in self.COMMAND))
        self.clients = [Lines(self.port) for _ in range(5)]
        self.done = [self.state(client) for client in self.clients]
        found_at(self.port)

    def state(self, client):
        client.send(b"state\n")
        return [int(number) for number in client.line().split()]

    def step(self, step):
        said = [content(step + turn, 3000).hex().encode() for turn in range(len(self.clients))]
        for client, line in zip(self.clients, said):
            client.send(line + b"\n")
        for client, line in zip(self.clients, said):
            assert client.line() == hashlib.sha256(line).hexdigest().encode()
        turn = step % len(self.clients)
        done = self.state(self.clients[turn])
        assert all(now >= before for now, before in zip(done, self.done[turn])), f"{done} after {self.done[turn]}"
        self.done[turn] = done

    def finish(self, steps):
        # Everything has gone on.
        first = self.state(self.clients[0])
        while any(now <= before for now, before in zip(self.state(self.clients[0]), first)):
            time.sleep(0.01)
        for client in self.clients[1:]:
            client.close()
        self.clients[0].send(b"end\n")
        ended(self.server)


class Node(Served):
    COMMAND = "node", "{here}/serve.js", "{port}"


class Java(Served):
    COMMAND = "java", "-Xmx64m", "{here}/Serve.java", "{port}"


class Perl(Served):
    COMMAND = "perl", "{here}/serve.pl", "{port}"


class Multiprocessing:
    """A listener of Python's multiprocessing, which has a pool of processes reckon."""

    def __init__(self):
        self.port = free_port()
        self.server = start(sys.executable, __file__, "pool", str(self.port))
        connect(self.port).close()
        self.clients = [multiprocessing.connection.Client((HOST, self.port), authkey=b"key") for _ in range(4)]
        found_at(self.port)

    def step(self, step):
        for turn, client in enumerate(self.clients):
            client.send([content(step + turn + part, 5000) for part in range(8)])
        for turn, client in enumerate(self.clients):
            wanted = [hashlib.sha256(content(step + turn + part, 5000)).hexdigest() for part in range(8)]
            assert client.recv() == wanted, f"client {turn}"

    def finish(self, steps):
        self.clients[0].send(None)
        ended(self.server)


def digest(data):
    return hashlib.sha256(data).hexdigest()


def pool(port):
    def answer(client, workers):
        while (parts := client.recv()) is not None:
            client.send(workers.map(digest, parts, chunksize=1))
        workers.terminate()
        os._exit(0)

    with multiprocessing.Pool(3) as workers:
        listener = multiprocessing.connection.Listener((HOST, port), authkey=b"key")
        while True:
            try:
                client = listener.accept()
            except (EOFError, ConnectionError):
                continue  # It only looked whether somebody is there.
            threading.Thread(target=answer, args=(client, workers), daemon=True).start()


class Git:
    """A server of a repository that is cloned, pushed to and cloned again."""

    def __init__(self):
        self.port = free_port()
        self.environment = dict(os.environ, GIT_CONFIG_GLOBAL="/dev/null", GIT_CONFIG_SYSTEM="/dev/null",
                                GIT_AUTHOR_NAME="a", GIT_AUTHOR_EMAIL="a", GIT_COMMITTER_NAME="a", GIT_COMMITTER_EMAIL="a")
        self.git("init", "-q", "--bare", "served/repository")
        self.server = start("git", "daemon", "--base-path=served", "--export-all", "--enable=receive-pack",
                            f"--listen={HOST}", f"--port={self.port}", "--reuseaddr")
        connect(self.port).close()
        self.address = f"git://{HOST}:{self.port}/repository"
        self.git("clone", "-q", self.address, "work")

    def git(self, *words):
        found = subprocess.run(["git", *words], env=self.environment, stdin=subprocess.DEVNULL, capture_output=True)
        assert found.returncode == 0, f"git {words}: {found.returncode}, {found.stderr}"
        return found.stdout

    def step(self, step):
        with open("work/file", "ab") as file:
            file.write(content(step, 20000))
        self.git("-C", "work", "add", "file")
        self.git("-C", "work", "commit", "-q", "-m", f"step {step}")
        self.git("-C", "work", "push", "-q", "origin", "HEAD:main")
        if step == 1:
            found_at(self.port)
        name = f"clone{step}"
        self.git("clone", "-q", "-b", "main", self.address, name)
        assert self.git("-C", name, "rev-list", "--count", "HEAD") == b"%d\n" % step
        with open(f"{name}/file", "rb") as one, open("work/file", "rb") as other:
            assert one.read() == other.read()
        subprocess.run(["rm", "-rf", name], check=True)

    def finish(self, steps):
        assert self.git("-C", "served/repository", "fsck", "--strict") == b""
        self.server.terminate()
        ended(self.server, -15)


class Outside:
    """A client that is no part of the job: what it was told holds, also when it has to connect again."""

    def __init__(self, kind, folder, number):
        with open(f"{folder}/port") as file:
            self.port = file.read()
        self.kind, self.folder, self.number = kind, folder, int(number)
        self.name, self.server, self.count, self.late = f"outside{number}", None, None, 0

    def connect(self):
        """Asks how much of what it has done is there."""
        if self.kind in ("redis", "memcached", "node", "java", "perl"):
            self.server = Lines(int(self.port))
        if self.kind in ("socat", "asyncio"):
            self.server = connect(int(self.port))
        if self.kind == "multiprocessing":
            self.server = multiprocessing.connection.Client((HOST, int(self.port)), authkey=b"key")
        if self.kind == "redis":
            self.server.send(f"INCRBY {self.name} 0\r\n".encode())
            return int(self.server.line()[1:])
        if self.kind == "memcached":
            self.server.send(f"add {self.name} 0 0 1\r\n0\r\n".encode())
            self.server.line()
            self.server.send(f"incr {self.name} 0\r\n".encode())
            return int(self.server.line())
        if self.kind == "postgres":
            self.server = Postgres.client(self, HOST)
            return int(self.query(f"select count(*) from outside where client = {self.number}"))
        if self.kind == "mariadb":
            self.server = Mariadb.client(self, "tcp", self.folder)
            return int(self.query(f"select count(*) from d.outside where client = {self.number}"))
        if self.kind == "agent":
            self.server = socket.socket(socket.AF_UNIX)
            self.server.connect(self.port)
        return self.count

    def query(self, question):
        try:
            self.server.stdin.write(f"{question};\n".encode())
            self.server.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self.server.stdout.readline()
        if not answer:
            self.server.wait()
            raise ConnectionResetError("the server has gone")
        return answer

    def run_client(self, *command):
        """What it prints; that it fails is the connection's end."""
        found = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
        if found.returncode != 0:
            raise ConnectionResetError(found.stderr)
        return found.stdout

    def step(self, step):
        if self.kind == "redis":
            self.server.send(f"INCR {self.name}\r\n".encode())
            self.expect(int(self.server.line()[1:]), step)
        elif self.kind == "memcached":
            self.server.send(f"incr {self.name} 1\r\n".encode())
            self.expect(int(self.server.line()), step)
        elif self.kind in ("postgres", "mariadb"):
            table = "outside" if self.kind == "postgres" else "d.outside"
            found = self.query(f"insert into {table} values ({self.number}, {step});"
                               f" select count(*) from {table} where client = {self.number}")
            self.expect(int(found), step)
        elif self.kind in ("nginx", "http"):
            number, size = step % 10, 1 + (step % 10) ** 4 if self.kind == "nginx" else 30000 * (step % 10)
            try:
                with urllib.request.urlopen(f"http://{HOST}:{self.port}/{number}") as answer:
                    found = answer.read()
            except (urllib.error.URLError, http.client.HTTPException) as error:
                raise ConnectionResetError(error) from error
            assert found == content(number, size), f"file {number}: {len(found)} bytes"
        elif self.kind == "openssl":
            context = ssl.create_default_context(cafile=f"{self.folder}/certificate")
            context.check_hostname = False
            try:
                with context.wrap_socket(connect(int(self.port))) as asked:
                    asked.sendall(b"GET /file%d HTTP/1.0\r\n\r\n" % (step % 5))
                    found = asked.makefile("rb").read()
            except ssl.SSLError as error:
                raise ConnectionResetError(error) from error
            if len(found) < 40000 * (step % 5):
                raise ConnectionResetError(f"{len(found)} bytes")
            Openssl.check(self, step % 5, found)
        elif self.kind in ("socat", "asyncio"):
            said, found = content(step, 3000), b""
            self.server.sendall(said)
            while len(found) < len(said):
                more = self.server.recv(len(said) - len(found))
                if not more:
                    raise ConnectionResetError("the other end has hung up")
                found += more
            assert found == said, f"{len(found)} bytes"
        elif self.kind == "multiprocessing":
            parts = [content(step + part, 2000) for part in range(4)]
            self.server.send(parts)
            assert self.server.recv() == [digest(part) for part in parts]
        elif self.kind == "git":
            with tempfile.TemporaryDirectory() as clone:
                self.run_client("git", "clone", "-q", "-b", "main", f"git://{HOST}:{self.port}/repository", f"{clone}/work")
                commits = int(self.run_client("git", "-C", f"{clone}/work", "rev-list", "--count", "HEAD"))
                assert commits > 0 and os.path.getsize(f"{clone}/work/file") == 20000 * commits, f"{commits} commits"
        elif self.kind == "agent":
            agent = object.__new__(Agent)
            agent.key = agent.keys(self.server)
            assert agent.sign(self.server, b"text") == agent.sign(self.server, b"text")
        elif self.kind == "dbus":
            self.run_client("dbus-send", f"--bus=unix:path={self.port}", "--print-reply",
                            "--dest=org.freedesktop.DBus", "/", "org.freedesktop.DBus.GetId")
        else:
            line = content(step, 2000).hex().encode()
            self.server.send(line + b"\n")
            assert self.server.line() == hashlib.sha256(line).hexdigest().encode()

    def expect(self, found, step):
        """What an earlier connection has asked may be done later than what this one asks."""
        assert step <= found <= step + self.late, f"{found} instead of {step}"
        self.late -= found - step
        self.count += found - step

    def run(self):
        self.count = 0
        while True:
            asked = False
            try:
                there = self.connect()
                # What was answered, and what was asked but not answered.
                self.expect(there, self.count)
                while True:
                    asked = True
                    self.step(self.count + 1)
                    asked = False
                    self.count += 1
                    os.write(1, f"step {self.count}\n".encode())
                    time.sleep(0.002)
            except (ConnectionError, TimeoutError, EOFError, FileNotFoundError) as error:
                self.late += asked
                os.write(1, f"again after {self.count}: {error!r}\n".encode())
                time.sleep(0.05)


def outside(kind, folder, number):
    while not os.path.exists(f"{folder}/port"):
        time.sleep(0.01)
    Outside(kind, folder, number).run()


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
    if sys.argv[1] == "outside":
        outside(*sys.argv[2:])
        return
    kind, steps = sys.argv[1], int(sys.argv[2])
    if kind in ("echo", "pool"):
        globals()[kind](steps)
        return
    server = globals()[kind.capitalize()]()
    for step in range(1, steps + 1):
        while guest.limit() < step:
            time.sleep(0.005)
        time.sleep(0.005)
        os.write(1, f"step {step}\n".encode())
        server.step(step)
    server.finish(steps)
    os.write(1, b"ok\n")


if __name__ == "__main__":
    main()
