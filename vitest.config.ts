import { defineConfig } from "vitest/config";

const resolve = { conditions: ["source", "node"] };
const ssr = { resolve };
const pure = ["packages/*/src/**/*.test.ts"];
const pg = ["packages/*/src/**/*.pg.test.ts"];
const kill = ["packages/*/src/**/*.kill.test.ts"];
const interop = ["packages/*/src/**/*.interop.ts"];

/**
 * In CI a test on real servers gets a second try, marked `(retry x1)` in the report: each of those is a bug to be found, but not
 * a reason to throw the run away. Elsewhere there is none.
 */
const retry = process.env["CI"] ? 1 : 0;

/** The suffix says what a test needs: nothing, a real Postgres, or real processes and signals. */
export default defineConfig({
  resolve,
  ssr,
  test: {
    maxWorkers: 2,
    projects: [
      { resolve, ssr, test: { name: "tidy", include: ["scripts/*.test.ts"] } },
      { resolve, ssr, test: { name: "unit", include: pure, exclude: [...pg, ...kill], testTimeout: 30_000 } },
      {
        resolve,
        ssr,
        test: {
          name: "pg",
          include: pg,
          retry,
          testTimeout: 120_000,
          hookTimeout: 120_000,
          sequence: { groupOrder: 1 },
        },
      },
      {
        resolve,
        ssr,
        // By themselves, after all others: they measure how long a takeover takes.
        test: {
          name: "kill",
          include: kill,
          retry,
          testTimeout: 300_000,
          hookTimeout: 120_000,
          fileParallelism: false,
          sequence: { groupOrder: 2 },
        },
      },
      // Foreign readers in Python: `npm run interop` makes the environment and sets the variable.
      ...(process.env["SPILLWAY_INTEROP"]
        ? [{ resolve, ssr, test: { name: "interop", include: interop, testTimeout: 120_000, hookTimeout: 120_000 } }]
        : []),
    ],
  },
});
