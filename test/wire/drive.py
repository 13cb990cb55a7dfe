"""Drives overlayd as an agent does, by raw frames: a client that shares no code
with it. Called as drive.py SOCKET PID PID: sets the overlay up, a shared and a
dedicated service, and attaches a process to each. Prints their addresses as a
line of JSON, waits for a line, and takes all of it down again."""

import base64
import json
import socket
import struct
import sys


class Overlayd:
    """One connection. Frames are a length (u32, little-endian) and JSON."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(120)
        self.sock.connect(path)
        self.id = 0

    def receive(self, size):
        data = b""
        while len(data) < size:
            more = self.sock.recv(size - len(data))
            if not more:
                sys.exit("overlayd hung up")
            data += more
        return data

    def ask(self, op, **fields):
        """Returns the response, whatever it is."""
        self.id += 1
        body = json.dumps({"frame": "request", "id": self.id, "request": {"op": op, **fields}}).encode()
        self.sock.sendall(struct.pack("<I", len(body)) + body)
        (size,) = struct.unpack("<I", self.receive(4))
        frame = json.loads(self.receive(size))
        expect(frame["frame"] == "response" and frame["id"] == self.id, f"{op}: not its response", frame)
        return frame["response"]

    def call(self, op, result, **fields):
        """Returns a response of the kind that it has to be."""
        response = self.ask(op, **fields)
        expect(response["result"] == result, f"{op}: want {result}", response)
        return response

    def refuse(self, op, code, **fields):
        """Asks for what must be refused with a code."""
        response = self.call(op, "err", **fields)
        expect(response["code"] == code and response["message"], f"{op}: want code {code}", response)


def expect(condition, what, got):
    if not condition:
        sys.exit(f"{what}, got {got}")


def main(path, *pids):
    overlayd = Overlayd(path)
    overlayd.refuse("make_coffee", "unsupported")  # and the connection stays
    overlayd.refuse("setup_service_overlay", "unavailable", service="web", mode="shared")
    overlay = {"deployment": "prod", "instance_id": "1", "cluster_cidr": "10.200.0.0/16", "slice_cidr": "10.200.1.0/24", "wg_port": 51820, "nat_enabled": False}
    overlayd.call("set_local_node_id", "ok", node_id=1)
    device = overlayd.call("setup_global_overlay", "bridge_name", **overlay)["name"]
    expect(overlayd.call("setup_global_overlay", "bridge_name", **overlay)["name"] == device, "set up again", device)
    overlayd.refuse("setup_global_overlay", "conflict", **{**overlay, "slice_cidr": "10.200.2.0/24"})

    shared = overlayd.call("setup_service_overlay", "service_overlay", service="web", mode="shared")
    dedicated = overlayd.call("setup_service_overlay", "service_overlay", service="bank", mode="dedicated")
    expect("wg_port" not in shared and dedicated["wg_port"] > 51820, "UDP ports", (shared, dedicated))
    addresses = []
    for pid, service in zip(pids, ("web", "bank")):
        attach = {"handle": {"platform": "linux_pid", "pid": int(pid)}, "service": service, "join_global": True}
        ip = overlayd.call("attach_container", "attached", **attach)["ip"]
        expect(overlayd.call("attach_container", "attached", **attach)["ip"] == ip, "attached again", ip)
        addresses.append(ip)
    status = overlayd.call("status", "status")
    expect(status["interface"] == device and status["service_count"] == 2, "status", status)
    expect([s["service"] for s in status["dedicated_services"]] == ["bank"], "dedicated services", status)
    peer = {
        "public_key": base64.b64encode(bytes(range(32))).decode(), "endpoint": "192.168.1.2:51820", "allowed_ips": "10.200.9.0/24",
        "persistent_keepalive_secs": 0, "candidates": ["host/192.168.1.2:51820", "server_reflexive/203.0.113.7:40001"], "relay": "udp=192.0.2.1:3478",
    }
    overlayd.call("add_peer", "ok", **peer, scope={"scope": "global"})
    overlayd.refuse("add_peer", "invalid", **{**peer, "candidates": ["somewhere"]}, scope={"scope": "global"})
    overlayd.call("remove_peer", "ok", pubkey=peer["public_key"], scope={"scope": "global"})
    print(json.dumps(addresses), flush=True)
    sys.stdin.readline()

    overlayd.refuse("teardown_global_overlay", "conflict")  # it is in use
    for pid in pids:
        for _ in range(2):
            overlayd.call("detach_container", "ok", handle={"platform": "linux_pid", "pid": int(pid)})
    for service in ("web", "bank", "nobody"):
        overlayd.call("teardown_service_overlay", "ok", service=service)
    expect(overlayd.call("status", "status")["service_count"] == 0, "services are left", status)
    overlayd.call("teardown_global_overlay", "ok")


main(*sys.argv[1:])
