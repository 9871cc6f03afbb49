"""Loads `erank serve` with the bundled model: python load.py ERANK [TEST]...

ERANK is the program. Each test starts a service of its own, and prints what it measured. The tests are connections,
slow, memory, restart, latency and llama_cpp; without names, all run. The script needs the standard library alone, Linux
for the memory, and for llama_cpp the server that tests/remote/fetch_llama_cpp.sh installs.
"""

import asyncio
import collections
import json
import os
import pathlib
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

QUERY = "how do bees make honey"
SMALL = {
    "query": QUERY,
    "documents": ["Bees fan nectar dry, which makes it honey."],
    "mode": "answer_only",
}


class Service:
    """A running `erank serve`."""

    def __init__(self, program, *arguments, port=None):
        self.program, self.arguments = program, arguments
        self.port = port or free_port()
        self.log = tempfile.TemporaryFile()

    async def __aenter__(self):
        command = ["serve", "--listen", f"127.0.0.1:{self.port}", *self.arguments]
        self.process = await asyncio.create_subprocess_exec(
            self.program, *command, stdout=asyncio.subprocess.DEVNULL, stderr=self.log
        )
        while True:
            try:
                async with Client(self.port) as client:
                    await client.send("GET", "/health")
                return self
            except OSError:
                assert self.process.returncode is None, "the service did not start"
                await asyncio.sleep(0.05)

    async def __aexit__(self, *_):
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    async def stop(self):
        self.process.send_signal(signal.SIGTERM)
        await self.process.wait()

    def memory(self):
        """Returns the resident memory in MiB."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1]) / 1024

    def answered(self):
        """Returns how often the log has each id of a ranking with the status 200."""
        self.log.seek(0)
        answered = re.compile(r'path="/v1/rerank" status=200 .* id="([^"]+)"')
        return collections.Counter(answered.findall(self.log.read().decode()))


class Client:
    """A connection that stays open between requests."""

    def __init__(self, port):
        self.port = port

    async def __aenter__(self):
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_):
        self.writer.close()

    async def send(self, method, path, body=None, **headers):
        """Returns the status and the reply's body."""
        self.writer.write(head(method, path, body, **headers))
        await self.writer.drain()
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        content = await self.reader.readexactly(int(fields["content-length"]))
        return int(lines[0].split()[1]), content


def head(method, path, body=None, **headers):
    """Returns the bytes of a request."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", f"content-length: {len(content)}"]
    lines += ["content-type: application/json"] if body is not None else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + content


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def spread(seconds):
    """Describes times in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100)
    return f"p50 {cuts[49] * 1e3:.2f} ms, p99 {cuts[98] * 1e3:.2f} ms"


async def timed(work):
    begin = time.monotonic()
    result = await work
    return time.monotonic() - begin, result


async def connections(program):
    """1,000 connections are open at once, and each sends a request."""
    async with Service(program, "--max-waiting", "1000") as service:
        clients = [Client(service.port) for _ in range(1000)]
        seconds, _ = await timed(asyncio.gather(*[client.__aenter__() for client in clients]))
        print(f"connections: 1,000 opened in {seconds:.2f} s, {service.memory():.0f} MiB")
        for name, request in [
            ("GET /health", ("GET", "/health")),
            ("rerank", ("POST", "/v1/rerank", SMALL)),
        ]:
            work = [timed(client.send(*request)) for client in clients]
            seconds, replies = await timed(asyncio.gather(*work))
            statuses = collections.Counter(status for _, (status, _) in replies)
            times = spread([time for time, _ in replies])
            memory = service.memory()
            print(
                f"connections: 1,000 × {name} in {seconds:.2f} s, {dict(statuses)}, {times}, {memory:.0f} MiB"
            )
        for client in clients:
            await client.__aexit__()
    async with Service(program) as service:
        clients = [await Client(service.port).__aenter__() for _ in range(1000)]
        body = {**SMALL, "mode": "reason"}
        replies = await asyncio.gather(
            *[client.send("POST", "/v1/rerank", body) for client in clients]
        )
        statuses = collections.Counter(status for status, _ in replies)
        print(f"connections: 1,000 × rerank with the default queue: {dict(statuses)}")


async def slow(program):
    """Slow clients keep connections open while another client is served."""
    async with Service(program) as service:
        begin = time.monotonic()
        ends = collections.defaultdict(list)

        async def slow_writer(kind, count):
            """Sends `count` bytes of a request, and then a byte each second."""
            async with Client(service.port) as client:
                content = head("POST", "/v1/rerank", {**SMALL, "query": "x" * 1000})
                client.writer.write(content[:count])
                reply = asyncio.ensure_future(client.reader.read())
                for byte in content[count:]:
                    await asyncio.wait([reply], timeout=1)
                    if reply.done():
                        break
                    try:
                        client.writer.write(bytes([byte]))
                        await client.writer.drain()
                    except ConnectionError:
                        break
                try:
                    status = (await reply).split(b" ")[1:2]
                except ConnectionError:
                    status = [b"reset"]
                ends[kind, b"".join(status).decode() or "closed"].append(time.monotonic() - begin)

        async def slow_reader():
            """Asks for large replies, and reads nothing."""
            with socket.socket() as stream:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                stream.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(stream, ("127.0.0.1", service.port))
                body = {
                    **SMALL,
                    "documents": ["bees " * 20000] * 4,
                    "return_documents": True,
                    "timeout": 1,
                }
                try:
                    for _ in range(100):
                        await loop.sock_sendall(stream, head("POST", "/v1/rerank", body))
                        await asyncio.sleep(1)
                except ConnectionError:
                    pass
                ends["reader", "reset"].append(time.monotonic() - begin)

        work = [slow_writer("headers", 20) for _ in range(50)]
        work += [slow_writer("body", 300) for _ in range(50)]
        work += [slow_reader() for _ in range(20)]
        work = asyncio.gather(*work)
        times = []
        async with Client(service.port) as client:
            while not work.done():
                seconds, (status, _) = await timed(client.send("POST", "/v1/rerank", SMALL))
                assert status in (200, 429), status
                times += [seconds] if status == 200 else []
                await asyncio.sleep(0.05)
        await work
        for (kind, end), all_times in sorted(ends.items()):
            print(
                f"slow: {len(all_times)} × {kind}: {end} after {min(all_times):.1f} to {max(all_times):.1f} s"
            )
        print(
            f"slow: another client meanwhile: {len(times)} requests, {spread(times)}, {service.memory():.0f} MiB"
        )


async def memory(program):
    """The resident memory before and after 10,000 requests, of which each has a query of its own.

    The engine's KV cache keeps the prompts of old requests until it is full. A small one is full soon.
    """
    async with Service(program, "--kv-cache-mib", "32") as service:
        statuses = collections.Counter()
        numbers = iter(range(10_000))

        async def work():
            async with Client(service.port) as client:
                for number in numbers:
                    body = {**SMALL, "query": f"{QUERY} {number}"}
                    status, _ = await client.send("POST", "/v1/rerank", body)
                    statuses[status] += 1
                    if sum(statuses.values()) % 1000 == 0:
                        sizes.append(f"{service.memory():.1f}")

        sizes = [f"{service.memory():.1f}"]
        seconds, _ = await timed(asyncio.gather(*[work() for _ in range(8)]))
        print(
            f"memory: {dict(statuses)} in {seconds:.0f} s; MiB before and after each 1,000: {', '.join(sizes)}"
        )


async def restart(program):
    """The service is stopped and started again three times while clients send."""
    port = free_port()
    count, answers, retries = 2000, collections.Counter(), collections.Counter()
    numbers = iter(range(count))
    computed = collections.Counter()

    async def work():
        client = None
        for number in numbers:
            while True:
                try:
                    if client is None:
                        client = await Client(port).__aenter__()
                    status, _ = await client.send(
                        "POST", "/v1/rerank", SMALL, x_request_id=f"request-{number}"
                    )
                    if status == 200:
                        answers[number] += 1
                        break
                    retries[str(status)] += 1
                except ConnectionRefusedError:
                    retries["refused"] += 1
                    client = None
                except asyncio.IncompleteReadError as error:
                    retries[
                        "closed within a reply" if error.partial else "closed without a reply"
                    ] += 1
                    client = None
                except ConnectionError:
                    retries["reset"] += 1
                    client = None
                await asyncio.sleep(0.05)

    clients = None
    stops = []
    for round in range(4):
        async with Service(program, port=port) as service:
            clients = clients or asyncio.gather(*[work() for _ in range(16)])
            goal = count * (round + 1) // 4
            while len(answers) < goal - 16 and not clients.done():
                await asyncio.sleep(0.01)
            if round == 3:
                await clients
            stops.append((await timed(service.stop()))[0])
            computed += service.answered()
    twice = sum(number > 1 for number in computed.values())
    stops = ", ".join(f"{seconds:.2f}" for seconds in stops)
    print(
        f"restart: {count} requests answered after retries; "
        f"{sum(computed.values())} in the logs, {twice} of them twice"
    )
    print(f"restart: retries: {dict(retries)}; the stops took {stops} s")


async def latency(program):
    """Sequential requests on one connection."""
    async with Service(program, "--log", "error") as service, Client(service.port) as client:
        blank = {**SMALL, "documents": [""]}
        for name, request in [
            ("GET /health", ("GET", "/health")),
            ("rerank, a blank document (no work of the engine)", ("POST", "/v1/rerank", blank)),
            ("rerank, a small document, answer only", ("POST", "/v1/rerank", SMALL)),
            (
                "rerank, a small document, with its reasoning",
                ("POST", "/v1/rerank", {**SMALL, "mode": "reason"}),
            ),
        ]:
            times = [(await timed(client.send(*request)))[0] for _ in range(1000)]
            print(f"latency: {name}: {spread(times)}")


async def llama_cpp(_program):
    """Sequential requests to llama.cpp's server with the same model, one prompt and one token each."""
    root = pathlib.Path(__file__).parents[2]
    python = root / "tests/.cache/llama-cpp/bin/python"
    with tempfile.TemporaryDirectory() as folder:
        model = f"{folder}/tiny.gguf"
        convert = [python, root / "tests/remote/gguf.py", root / "erank-candle/tiny-model", model]
        subprocess.run(convert, check=True, stdout=subprocess.DEVNULL)
        port = free_port()
        server = await asyncio.create_subprocess_exec(
            python,
            root / "tests/remote/serve.py",
            model,
            str(port),
            "1",
            "2048",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        while not (await server.stdout.readline()).startswith(b"ready"):
            pass

        async def send(*request):
            """Sends a request 1,000 times. The server ends a connection after 100 requests."""
            for _ in range(20):
                async with Client(port) as client:
                    for _ in range(50):
                        seconds, (status, content) = await timed(client.send(*request))
                        assert status == 200, content
                        yield seconds, content

        times = [seconds async for seconds, _ in send("GET", "/health")]
        print(f"llama_cpp: GET /health: {spread(times)}")
        prompt = f"{QUERY}\n{SMALL['documents'][0]}\n<answer>"
        body = {"prompt": prompt, "max_tokens": 1, "logprobs": 20, "temperature": 0}
        totals, besides = [], []
        async for seconds, content in send("POST", "/v1/completions", body):
            timings = json.loads(content)["timings"]
            engine = (timings["prompt_ms"] + timings["predicted_ms"]) / 1e3
            totals.append(seconds)
            besides.append(seconds - engine)
        print(f"llama_cpp: one token with 20 log-probabilities: {spread(totals)}")
        print(f"llama_cpp: the same without the time of the model: {spread(besides)}")
        server.kill()
        await server.wait()


def main():
    tests = (connections, slow, memory, restart, latency, llama_cpp)
    tests = {test.__name__: test for test in tests}
    if len(sys.argv) < 2 or not set(sys.argv[2:]) <= tests.keys():
        sys.exit(__doc__)
    for name in sys.argv[2:] or tests:
        print(f"{name}: load of the machine {os.getloadavg()[0]:.1f}", flush=True)
        asyncio.run(tests[name](sys.argv[1]))


if __name__ == "__main__":
    main()
