/** How to start the `spillway-ha` program of this very package: compiled, or from the source. */
import { fileURLToPath } from "node:url";

export function haProgram(): string[] {
  const here = import.meta.url;
  const fromSource = here.endsWith(".ts");
  const path = fileURLToPath(new URL(`../main.${fromSource ? "ts" : "js"}`, here));
  const loader = fromSource ? ["--import", import.meta.resolve("tsx"), "--conditions=source"] : [];
  return [process.execPath, ...loader, path];
}
