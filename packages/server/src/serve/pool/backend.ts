/** Where nodes run: processes of this machine, or pods. The pool says what it wants; a backend starts and ends. */

export interface NodeProcess {
  readonly pid: number;
  /** Tells two processes of one number apart. */
  readonly startedAt: string;
}

export interface NodeBackend<Config> {
  readonly kind: "local" | "kubernetes";
  /** Where a node of this id listens and keeps its files. */
  place(nodeId: string): { readonly socketPath: string; readonly cacheDir: string };
  /** Throws `no_node`. `onExit` is told once, when it is over. */
  start(config: Config, onExit: (why: string) => void): NodeProcess;
  isAlive(node: NodeProcess): boolean;
  /** The whole group. */
  end(node: NodeProcess, signal: "SIGTERM" | "SIGKILL"): void;
}
