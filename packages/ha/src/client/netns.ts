/**
 * Network namespaces for tests, benches and chaos: each node in a namespace of its own, all plugged into one
 * bridge, so that a node can be cut off as a pulled cable would: packets vanish, nobody is told. Needs root
 * and Linux; nothing outside the private bridge is touched.
 */
import { execFileSync } from "node:child_process";

export interface NetNode {
  readonly namespace: string;
  readonly address: string;
  /** The bridge's end of the cable. */
  readonly port: string;
}

const PREFIX = "spwha";

function ip(...args: string[]): void {
  execFileSync("ip", args, { stdio: ["ignore", "ignore", "pipe"] });
}

/** Whether this process may make namespaces and bridges. */
export function canMakeNamespaces(): boolean {
  if (process.platform !== "linux" || process.getuid?.() !== 0) return false;
  const name = `${PREFIX}probe${process.pid}`;
  try {
    ip("netns", "add", name);
    ip("netns", "del", name);
    return true;
  } catch {
    return false;
  }
}

/** A bridge with this host on it (`.1`) and one namespace for each node (`.11`, `.12`, …). */
export class NetLab {
  readonly nodes: readonly NetNode[];
  readonly hostAddress: string;
  readonly #bridge: string;

  private constructor(bridge: string, hostAddress: string, nodes: readonly NetNode[]) {
    this.#bridge = bridge;
    this.hostAddress = hostAddress;
    this.nodes = nodes;
  }

  static create(count: number): NetLab {
    const id = (process.pid % 200) + 20;
    const base = `10.211.${id}`;
    const bridge = `${PREFIX}b${id}`;
    const lab = new NetLab(
      bridge,
      `${base}.1`,
      Array.from({ length: count }, (_, i) => ({
        namespace: `${PREFIX}${id}n${i + 1}`,
        address: `${base}.${11 + i}`,
        port: `${PREFIX}${id}p${i + 1}`,
      })),
    );
    lab.destroy();
    try {
      ip("link", "add", bridge, "type", "bridge");
      ip("addr", "add", `${base}.1/24`, "dev", bridge);
      ip("link", "set", bridge, "up");
      for (const node of lab.nodes) lab.#plug(node);
    } catch (error) {
      lab.destroy();
      throw error;
    }
    return lab;
  }

  #plug(node: NetNode): void {
    const inside = `${node.port}i`;
    ip("netns", "add", node.namespace);
    ip("link", "add", node.port, "type", "veth", "peer", "name", inside);
    ip("link", "set", node.port, "master", this.#bridge, "up");
    ip("link", "set", inside, "netns", node.namespace);
    const within = (...args: string[]): void => ip("-n", node.namespace, ...args);
    within("addr", "add", `${node.address}/24`, "dev", inside);
    within("link", "set", inside, "up");
    within("link", "set", "lo", "up");
    this.heal(node);
  }

  /** Packets of this node vanish, both ways, without a word to anybody. */
  cut(node: NetNode): void {
    execFileSync("bridge", ["link", "set", "dev", node.port, "state", "0"], { stdio: "ignore" });
  }

  heal(node: NetNode): void {
    execFileSync("bridge", ["link", "set", "dev", node.port, "state", "3"], { stdio: "ignore" });
  }

  /** How to run a program in the node's namespace. */
  static enter(node: NetNode | null): readonly string[] {
    return node === null ? [] : ["ip", "netns", "exec", node.namespace];
  }

  destroy(): void {
    for (const node of this.nodes) {
      tryIp("netns", "del", node.namespace);
      tryIp("link", "del", node.port);
    }
    tryIp("link", "del", this.#bridge);
  }
}

function tryIp(...args: string[]): void {
  try {
    ip(...args);
  } catch {
    // was not there
  }
}
