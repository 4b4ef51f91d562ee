/** pyarrow on the other side of a Flight bench: its own C++ server with batches made before, and the client that reads from anybody. */
import { spawn, spawnSync, type ChildProcessWithoutNullStreams } from "node:child_process";
import { existsSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { SpillwayError } from "@spillway/base/errors";

/** One JSON line in, one out. */
const SCRIPT = String.raw`
import json, sys, threading, time
import pyarrow as pa
import pyarrow.flight as flight

class Server(flight.FlightServerBase):
    def __init__(self, rows, batch_rows):
        super().__init__("grpc://127.0.0.1:0")
        n = batch_rows
        self.batch = pa.record_batch({
            "a": pa.array(range(n), pa.int64()), "b": pa.array(range(n), pa.int64()),
            "c": pa.array([i * 1.5 for i in range(n)], pa.float64()), "d": pa.array(range(n), pa.int64())})
        self.count = rows // n
    def do_get(self, context, ticket):
        return flight.GeneratorStream(self.batch.schema, (self.batch for _ in range(self.count)))

def command(sql):
    def field(tag, data):
        size, out = len(data), b""
        while size >= 128:
            out += bytes([size % 128 | 128]); size //= 128
        return bytes([tag]) + out + bytes([size]) + data
    url = b"type.googleapis.com/arrow.flight.protocol.sql.CommandStatementQuery"
    return field(0x0A, url) + field(0x12, field(0x0A, sql.encode()))

def reader(port, user, password, sql):
    client = flight.connect(f"grpc://127.0.0.1:{port}")
    options = flight.FlightCallOptions()
    if user:
        options = flight.FlightCallOptions(headers=[client.authenticate_basic_token(user, password)])
    if sql is None:
        return client, client.do_get(flight.Ticket(b"x"), options)
    info = client.get_flight_info(flight.FlightDescriptor.for_command(command(sql)), options)
    return client, client.do_get(info.endpoints[0].ticket, options)

server = None
for line in sys.stdin:
    ask = json.loads(line)
    try:
        if ask["do"] == "serve":
            server = Server(ask["rows"], ask["batch_rows"])
            threading.Thread(target=server.serve, daemon=True).start()
            out = {"port": server.port}
        elif ask["do"] == "read":
            start = time.perf_counter()
            client, stream = reader(ask["port"], ask.get("user"), ask.get("password"), ask.get("sql"))
            rows = size = 0
            for chunk in stream:
                rows += chunk.data.num_rows
                size += chunk.data.nbytes
            out = {"rows": rows, "bytes": size, "seconds": time.perf_counter() - start}
            client.close()
        elif ask["do"] == "stall":
            client, stream = reader(ask["port"], ask.get("user"), ask.get("password"), ask.get("sql"))
            stream.read_chunk()
            time.sleep(ask["seconds"])
            stream.cancel()
            client.close()
            out = {"stalled": True}
    except Exception as e:
        out = {"error": f"{type(e).__name__}: {e}"}
    print(json.dumps(out), flush=True)
`;

export interface ReadResult {
  readonly rows: number;
  readonly bytes: number;
  readonly seconds: number;
}

export class FlightPeer {
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #waiting: { resolve: (line: string) => void; reject: (error: Error) => void }[] = [];

  constructor() {
    this.#child = spawn(pythonWithPyarrow(), ["-c", SCRIPT], { stdio: ["pipe", "pipe", "pipe"] });
    this.#child.stderr.resume();
    createInterface({ input: this.#child.stdout }).on("line", (line) => this.#waiting.shift()?.resolve(line));
    this.#child.on("close", () => {
      for (const { reject } of this.#waiting.splice(0)) reject(new Error("the pyarrow process ended"));
    });
  }

  async serve(rows: number, batchRows: number): Promise<number> {
    return Number((await this.#ask({ do: "serve", rows, batch_rows: batchRows }))["port"]);
  }

  async read(from: Readonly<Record<string, unknown>>): Promise<ReadResult> {
    return (await this.#ask({ do: "read", ...from })) as unknown as ReadResult;
  }

  /** Reads one batch, and then nothing for so long. */
  async stall(from: Readonly<Record<string, unknown>>, seconds: number): Promise<void> {
    await this.#ask({ do: "stall", seconds, ...from });
  }

  close(): void {
    this.#child.kill("SIGKILL");
  }

  async #ask(question: Record<string, unknown>): Promise<Record<string, unknown>> {
    const line = await new Promise<string>((resolve, reject) => {
      this.#waiting.push({ resolve, reject });
      this.#child.stdin.write(`${JSON.stringify(question)}\n`);
    });
    const answer = JSON.parse(line) as Record<string, unknown>;
    if (typeof answer["error"] === "string") throw new SpillwayError("demo_failed", `pyarrow: ${answer["error"]}`);
    return answer;
  }
}

function pythonWithPyarrow(): string {
  const candidates = [
    process.env["SPILLWAY_INTEROP"] ?? "",
    join(tmpdir(), "spillway-interop-venv", "bin", "python"),
    "python3",
  ];
  const found = candidates.find(
    (path) =>
      path !== "" &&
      (path === "python3" || existsSync(path)) &&
      spawnSync(path, ["-c", "import pyarrow.flight"]).status === 0,
  );
  if (found) return found;
  throw new SpillwayError("usage", "this bench compares with pyarrow's Flight server, and there is no pyarrow", {
    remedy: "Run `npm run interop` once, which installs it, or name a Python that has it in SPILLWAY_INTEROP.",
  });
}
