/** What a demo prints: numbered steps, checks, and a table now and then; and what it counts for the last line. */
import type { Output } from "../output.ts";

export class Show {
  readonly out: Output;
  readonly checks: { name: string; ok: boolean }[] = [];
  readonly #startMs = performance.now();
  #step = 0;

  constructor(out: Output) {
    this.out = out;
  }

  get seconds(): number {
    return Math.round((performance.now() - this.#startMs) / 100) / 10;
  }

  get failed(): number {
    return this.checks.filter((c) => !c.ok).length;
  }

  step(title: string): void {
    this.#step += 1;
    this.out.line(`\n${this.#step}. ${title}`);
  }

  line(text: string): void {
    this.out.line(`   ${text}`);
  }

  check(name: string, ok: boolean, detail = ""): void {
    this.checks.push({ name, ok });
    this.out.line(`   ${ok ? "ok    " : "FAILED"} ${name}${detail === "" ? "" : `: ${detail}`}`);
    if (!ok && this.out.json) this.out.error(`check failed: ${name}${detail === "" ? "" : `: ${detail}`}`);
  }

  progress(text: string): void {
    this.out.progress(`   ${text}`, performance.now());
  }
}
