"""A client for the benches that costs little itself.

select PORT SQL            reads a result and throws it away
idle PORT COUNT PROCESS    opens COUNT clients, each asks one query and stays; prints what one of them adds to the
                           resident bytes of PROCESS
idle-tls PORT COUNT PROCESS  the same over TLS
hold PORT COUNT [DATABASES]  opens COUNT clients, each asks one query and stays; says "ready"; after a line on standard
                           input each asks another
"""

import socket
import ssl
import struct
import sys


def connect(port, tls=None, database="bench"):
    stream = socket.create_connection(("127.0.0.1", port))
    if tls:
        stream.sendall(struct.pack("!II", 8, 80877103))
        if stream.recv(1) != b"S":
            raise SystemExit("no TLS here")
        stream = tls.wrap_socket(stream)
    body = struct.pack("!I", 196608) + f"user\0bench\0database\0{database}\0\0".encode()
    stream.sendall(struct.pack("!I", len(body) + 4) + body)
    read_until_ready(stream)
    return stream


def query(stream, sql):
    body = sql.encode() + b"\0"
    stream.sendall(b"Q" + struct.pack("!I", len(body) + 4) + body)
    return read_until_ready(stream)


def read_until_ready(stream):
    """Looks only at the end of what has come: ReadyForQuery has six bytes, and nothing follows it."""
    buffer = bytearray(1 << 20)
    view = memoryview(buffer)
    total = 0
    tail = b""
    while True:
        count = stream.recv_into(view)
        if count == 0:
            raise SystemExit(f"the connection was closed: {tail[-300:]!r}")
        total += count
        tail = (tail + bytes(view[max(0, count - 6) : count]))[-6:]
        if total < 4096 and b"FATAL" in buffer[:count]:
            raise SystemExit(bytes(buffer[:count]))
        if tail[:5] == b"Z\0\0\0\5":
            return total


def resident(process):
    for line in open(f"/proc/{process}/status"):
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no such process")


def idle(port, count, process, tls=None):
    # What the first clients make the program allocate is not theirs.
    clients = [connect(port, tls) for _ in range(20)]
    for client in clients:
        query(client, "select 1")
    before = resident(process)
    for _ in range(count):
        client = connect(port, tls)
        query(client, "select 1")
        clients.append(client)
    print((resident(process) - before) // count)


def hold(port, count, databases):
    names = [f"d{nth % databases}" if databases else "bench" for nth in range(count)]
    clients = [connect(port, database=name) for name in names]
    for client in clients:
        query(client, "select 1")
    print("ready", flush=True)
    sys.stdin.readline()
    for client in clients:
        query(client, "select 2")


if sys.argv[1] == "select":
    query(connect(int(sys.argv[2])), sys.argv[3])
elif sys.argv[1] == "idle":
    idle(int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
elif sys.argv[1] == "idle-tls":
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    idle(int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), unverified)
elif sys.argv[1] == "hold":
    hold(int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 0)
