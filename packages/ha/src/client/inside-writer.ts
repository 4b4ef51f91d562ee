/** A writer inside a node's network namespace: the client that is cut off together with its primary. */
import { spawn, type ChildProcess } from "node:child_process";
import { fileURLToPath } from "node:url";
import { NetLab, type NetNode } from "./netns.ts";
import type { Ack } from "./writer.ts";

export class InsideWriter {
  readonly acks: Ack[] = [];
  readonly #child: ChildProcess;
  readonly #ended: Promise<unknown>;

  constructor(net: NetNode | null, uri: string, writer: number, everyMs: number) {
    const here = import.meta.url;
    const source = here.endsWith(".ts");
    const path = fileURLToPath(new URL(`../roles/writer.${source ? "ts" : "js"}`, here));
    const loader = source ? ["--import", import.meta.resolve("tsx"), "--conditions=source"] : [];
    const args = JSON.stringify({ uri, writer, everyMs });
    const [program = "", ...rest] = [...NetLab.enter(net), process.execPath, ...loader, path, args];
    this.#child = spawn(program, rest, { stdio: ["pipe", "pipe", "ignore"], cwd: "/" });
    this.#ended = new Promise((resolve) => this.#child.once("close", resolve));
    let text = "";
    this.#child.stdout?.setEncoding("utf8").on("data", (chunk: string) => {
      const lines = (text + chunk).split("\n");
      text = lines.pop() ?? "";
      for (const line of lines) this.acks.push(JSON.parse(line) as Ack);
    });
    this.#child.stdin?.on("error", () => {});
  }

  async stop(): Promise<void> {
    this.#child.stdin?.end();
    setTimeout(() => this.#child.kill("SIGKILL"), 500).unref();
    await this.#ended;
  }
}
