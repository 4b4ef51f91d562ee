/**
 * The house rules, as tests: which package may import which, that a component is entered only through
 * the file named after its folder, that there are no cycles, that effects are constructed only at the
 * edge, that no file is dead, and that files stay short.
 */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { describe, expect, test } from "vitest";

const ROOT = resolve(import.meta.dirname, "..");

/** What each package, and each component of the server, may import of ours. */
const PACKAGES: Record<string, string[]> = {
  base: [],
  lake: ["base"],
  pg: ["base"],
  server: ["base", "lake", "pg"],
  ha: ["base", "pg"],
  cli: ["base", "lake", "pg", "server", "ha"],
  testkit: ["base", "lake", "pg"],
};
const COMPONENTS: Record<string, string[]> = {
  catalog: [],
  engine: [],
  seam: ["catalog", "engine"],
  movers: ["seam", "catalog", "engine"],
  control: ["catalog"],
  serve: ["seam", "catalog", "control", "engine"],
  jobs: ["movers"],
  roles: ["catalog", "engine", "seam", "movers", "control", "serve", "jobs"],
};
/** A component of the server that may not use a package that the server otherwise may. */
const COMPONENT_PACKAGES: Record<string, string[]> = {
  catalog: ["base", "pg", "lake"],
  engine: ["base", "lake"],
};
/** Files over the limit that are known; the number only goes down. */
const LONG_FILES: Record<string, number> = {};
const MAX_LINES = 450;

interface SourceFile {
  readonly path: string;
  readonly text: string;
  readonly imports: string[];
  readonly isTest: boolean;
}

function walk(dir: string): string[] {
  return readdirSync(dir).flatMap((name) => {
    const path = join(dir, name);
    if (name === "node_modules" || name === "dist") return [];
    return statSync(path).isDirectory() ? walk(path) : path.endsWith(".ts") ? [path] : [];
  });
}

function importsOf(text: string): string[] {
  const code = text.replace(/\/\*[\s\S]*?\*\//g, "").replace(/^\s*\/\/.*$/gm, "");
  const found = code.matchAll(
    /(?:^|[\s;])(?:import|export)\s[^;"']*?from\s*["']([^"']+)["']|import\(\s*["']([^"']+)["']\s*\)|^import\s+["']([^"']+)["']/gm,
  );
  return [...found].map((m) => m[1] ?? m[2] ?? m[3] ?? "");
}

function resolveImport(file: string, specifier: string): string | null {
  if (specifier.startsWith(".")) return relative(ROOT, resolve(ROOT, dirname(file), specifier));
  const own = /^@spillway\/([^/]+)\/(.+)$/.exec(specifier);
  return own ? `packages/${own[1]}/src/${own[2]}.ts` : null;
}

const files: SourceFile[] = walk(join(ROOT, "packages")).map((path) => {
  const text = readFileSync(path, "utf8");
  return {
    path: relative(ROOT, path),
    text,
    imports: importsOf(text),
    isTest: /\.(test|interop)\.ts$|\/test-[\w-]+\.ts$/.test(path),
  };
});
const byPath = new Map(files.map((f) => [f.path, f]));

function packageOf(path: string): string {
  return path.split("/")[1] ?? "";
}

/** The server's component of a path, or null. */
function componentOf(path: string): string | null {
  const parts = path.split("/");
  return parts[1] === "server" && parts.length > 4 ? (parts[3] ?? null) : null;
}

function edges(file: SourceFile): string[] {
  return file.imports.map((s) => resolveImport(file.path, s)).filter((p): p is string => p !== null);
}

function violations(check: (from: SourceFile, to: string) => string | null, includeTests = false): string[] {
  return files.filter((f) => includeTests || !f.isTest).flatMap((f) => edges(f).flatMap((to) => check(f, to) ?? []));
}

describe("the import arrows", () => {
  test("every relative or own import names a file that exists", () => {
    expect(violations((f, to) => (byPath.has(to) ? null : `${f.path} -> ${to}`), true)).toEqual([]);
  });

  test("packages import only what the map allows", () => {
    const bad = violations((f, to) => {
      const [from, target] = [packageOf(f.path), packageOf(to)];
      return from === target || PACKAGES[from]?.includes(target) ? null : `${f.path} -> ${to}`;
    });
    expect(bad).toEqual([]);
  });

  test("tests may add only the testkit", () => {
    const bad = violations((f, to) => {
      const [from, target] = [packageOf(f.path), packageOf(to)];
      const ok = from === target || target === "testkit" || PACKAGES[from]?.includes(target);
      return ok ? null : `${f.path} -> ${to}`;
    }, true);
    expect(bad).toEqual([]);
  });

  test("components of the server import only what the map allows, through the file named after the folder", () => {
    const bad = violations((f, to) => {
      const [from, target] = [componentOf(f.path), componentOf(to)];
      if (from === null || target === null || from === target) return null;
      if (!COMPONENTS[from]?.includes(target)) return `${f.path} -> ${to} (not allowed)`;
      return to === `packages/server/src/${target}/${target}.ts` ? null : `${f.path} -> ${to} (not its front door)`;
    });
    expect(bad).toEqual([]);
  });

  test("components that must stay pure do not reach for other packages", () => {
    const bad = violations((f, to) => {
      const allowed = COMPONENT_PACKAGES[componentOf(f.path) ?? ""];
      const target = packageOf(to);
      return !allowed || target === "server" || allowed.includes(target) ? null : `${f.path} -> ${to}`;
    });
    expect(bad).toEqual([]);
  });

  test("no cycles", () => {
    const state = new Map<string, "open" | "done">();
    const cycles: string[] = [];
    const visit = (path: string, trail: string[]): void => {
      if (state.get(path) === "done") return;
      if (state.get(path) === "open") {
        cycles.push([...trail.slice(trail.indexOf(path)), path].join(" -> "));
        return;
      }
      state.set(path, "open");
      const file = byPath.get(path);
      for (const to of file ? runtimeEdges(file) : []) visit(to, [...trail, path]);
      state.set(path, "done");
    };
    for (const f of files) visit(f.path, []);
    expect(cycles).toEqual([]);
  });
});

/** Imports that exist when the program runs: a type may be imported both ways. */
function runtimeEdges(file: SourceFile): string[] {
  const text = file.text.replace(/(import|export)\s+type\s[^;]*?from\s*["'][^"']+["'];?/g, "");
  return importsOf(text)
    .map((s) => resolveImport(file.path, s))
    .filter((p): p is string => p !== null);
}

describe("the house", () => {
  test("only roles, the command line and tests construct clocks and processes", () => {
    const effect = /\bsystemClock\b|\bspawn\(|\bfork\(|\bcreateServer\(/;
    const edge =
      /packages\/(cli|testkit)\/|packages\/server\/src\/roles\/|packages\/ha\/src\/(roles|keeper|postgres|client)\/|packages\/base\/src\/clock\.ts/;
    const bad = files.filter(
      (f) => !f.isTest && !edge.test(f.path) && effect.test(f.text.replace(/\/\*[\s\S]*?\*\//g, "")),
    );
    expect(bad.map((f) => f.path)).toEqual([]);
  });

  test("no file that nothing imports", () => {
    const used = new Set(files.flatMap((f) => edges(f)));
    const entry =
      /packages\/(cli|ha)\/src\/main\.ts$|packages\/ha\/src\/roles\/|packages\/server\/src\/roles\/|packages\/lake\/src\/lake\.ts$|\.(test|interop)\.ts$/;
    expect(files.filter((f) => !used.has(f.path) && !entry.test(f.path)).map((f) => f.path)).toEqual([]);
  });

  test("files stay short", () => {
    const long = files
      .map((f) => [f.path, f.text.split("\n").length] as const)
      .filter(([path, lines]) => lines > (LONG_FILES[path] ?? MAX_LINES));
    expect(long).toEqual([]);
  });

  test("identifiers reach SQL only through the quoting function", () => {
    const bad = files.filter(
      (f) =>
        !f.isTest &&
        /\$\{[^}]*\b(tableName|schemaName|columnName)\b[^}]*\}"?\s*(WHERE|SET|FROM|\()/.test(f.text) &&
        !/quoteIdent|quoteQualified/.test(f.text),
    );
    expect(bad.map((f) => f.path)).toEqual([]);
  });
});
