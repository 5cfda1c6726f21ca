"""Measure what the restricted network costs a guest, compared with the user network.

    python -m benchmarks.network out/linux-amd64.qcow2 --tries 3

A Node.js program in the guest talks to a server on the host's loopback device, which both networks reach as 10.0.2.2.
Machines with one network and with the other take turns; the figures are the medians of all tries. "CPU" is processor
time of QEMU and of this process (the gateway of the restricted network, and the server) from when the guest has settled
to the end.
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.boot import cpu_seconds
from imgkit.vm import VM
from imgkit.vm.qemu.machines import guess_arch

NETWORKS = ("user", "restricted")
CONNECTIONS, DOWN, UP = 30, 50_000_000, 20_000_000  # how many one after the other; bytes
COLUMNS = ("ms a connection", "MB/s down", "MB/s up", "QEMU CPU s", "imgkit CPU s")

CLIENT = """
const http = require('http');
const [port, connections, down, up] = process.argv.slice(1).map(Number);
const now = () => Number(process.hrtime.bigint()) / 1e6;
const ask = (path, body) => new Promise((done, failed) => {
  const options = { host: '10.0.2.2', port, path, agent: false, method: body ? 'POST' : 'GET' };
  const request = http.request(options, (answer) => {
    let size = 0;
    answer.on('data', (piece) => { size += piece.length; });
    answer.on('end', () => done(size));
  });
  request.on('error', failed);
  request.end(body);
});
(async () => {
  await ask('/1');
  let start = now();
  for (let number = 0; number < connections; number += 1) await ask('/1');
  const connection = (now() - start) / connections;
  start = now();
  const size = await ask(`/${down}`);
  if (size !== down) throw new Error(`${size} bytes came`);
  const toGuest = down / 1000 / (now() - start);
  const data = Buffer.alloc(up, 'x');
  start = now();
  await ask('/', data);
  console.log(JSON.stringify([connection, toGuest, up / 1000 / (now() - start)]));
})();
"""


class Handler(http.server.BaseHTTPRequestHandler):
    """A handler that sends as many bytes as the path says, and accepts everything that it is sent."""

    def do_GET(self) -> None:
        """Send as many bytes as the path says."""
        size = int(self.path[1:])
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        self.wfile.write(bytes(size))

    def do_POST(self) -> None:
        """Read the body of the request."""
        left = int(self.headers["Content-Length"])
        while left:
            left -= len(self.rfile.read(min(left, 1 << 16)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@contextmanager
def server() -> Iterator[int]:
    """Run a server on the loopback device during the block, and yield its port."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running.server_port
        running.shutdown()


def measure(image: Path, network: str, port: int, options: argparse.Namespace) -> list[float]:
    """Boot one machine, and return the numbers of :data:`COLUMNS`."""
    allow = [f"127.0.0.1:{port}"] if network == "restricted" else []
    chosen = {"accelerator": options.accel, "cpus": options.cpus, "timeout": options.timeout}
    with VM.boot(image, arch=guess_arch(image), network=network, allow=allow, **chosen) as vm:
        cpu, own = cpu_seconds(vm.pid), time.process_time()
        words = ["node", "-e", CLIENT, *map(str, (port, CONNECTIONS, DOWN, UP))]
        done = vm.run(words, timeout=options.timeout).check()
        return [*json.loads(done.text), cpu_seconds(vm.pid) - cpu, time.process_time() - own]


def main() -> int:
    """Measure both networks in turn, and print the table."""
    options_parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options_parser.add_argument("image", type=Path, metavar="IMAGE")
    options_parser.add_argument("--tries", type=int, default=3)
    options_parser.add_argument("--accel", default="auto")
    options_parser.add_argument("--cpus", type=int, default=1)
    options_parser.add_argument("--timeout", type=float, default=300.0, metavar="S")
    options = options_parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors, medians of {options.tries}\n")
    results: Mapping[str, list[list[float]]] = {network: [] for network in NETWORKS}
    with server() as port:
        for _ in range(options.tries):
            for network in NETWORKS:
                results[network].append(measure(options.image, network, port, options))
    print(f"| network | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    for network, measured in results.items():
        medians = [f"{statistics.median(column):.1f}" for column in zip(*measured, strict=True)]
        print(f"| {network} | {' | '.join(medians)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
