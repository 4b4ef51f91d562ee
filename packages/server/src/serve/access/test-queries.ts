/**
 * Random queries that mean the same in Postgres and in DuckDB, over `people`, `items` and `plain`: joins, subqueries, common
 * table expressions, aggregates, set operations, correlation. Every result is numbers and texts, in no order.
 */
import fc from "fast-check";

interface Source {
  readonly sql: string;
  /** Columns by kind, qualified. */
  readonly ints: readonly string[];
  readonly texts: readonly string[];
}

const TABLES: Readonly<Record<string, { readonly ints: readonly string[]; readonly texts: readonly string[] }>> = {
  people: { ints: ["id", "boss"], texts: ["name", "owner", "region", "ssn"] },
  items: { ints: ["id", "k"], texts: ["label"] },
  plain: { ints: ["a"], texts: ["b"] },
};
const WORDS = ["ann", "bob", "north", "south", "p1", "s2", "label 1", "label 3", "b5", ""];

const alias = fc.integer({ min: 0, max: 9 }).map((n) => `t${n}`);
const table = fc.constantFrom(...Object.keys(TABLES));

function base(name: string, as: string): Source {
  const { ints, texts } = TABLES[name] ?? { ints: [], texts: [] };
  return { sql: `${name} ${as}`, ints: ints.map((c) => `${as}.${c}`), texts: texts.map((c) => `${as}.${c}`) };
}

const quote = (text: string): string => `'${text}'`;

function condition(source: Source): fc.Arbitrary<string> {
  const int = fc.constantFrom(...source.ints);
  const text = fc.constantFrom(...source.texts);
  const n = fc.integer({ min: -1, max: 130 });
  const op = fc.constantFrom("=", "<>", "<", "<=", ">", ">=");
  const leaf = fc.oneof(
    fc.tuple(int, op, n).map(([c, o, v]) => `${c} ${o} ${v}`),
    fc.tuple(int, op, int).map(([a, o, b]) => `${a} ${o} ${b}`),
    fc.tuple(text, fc.constantFrom("=", "<>"), fc.constantFrom(...WORDS)).map(([c, o, v]) => `${c} ${o} ${quote(v)}`),
    fc.tuple(text, fc.constantFrom("p1%", "%1", "%a%", "s_", "label %")).map(([c, v]) => `${c} LIKE ${quote(v)}`),
    fc.tuple(fc.oneof(int, text), fc.boolean()).map(([c, not]) => `${c} IS ${not ? "NOT " : ""}NULL`),
    fc.tuple(int, n, n).map(([c, a, b]) => `${c} BETWEEN ${a} AND ${b}`),
    fc.tuple(int, fc.array(n, { minLength: 1, maxLength: 4 })).map(([c, vs]) => `${c} IN (${vs.join(", ")})`),
    fc.tuple(int, fc.integer({ min: 2, max: 5 })).map(([c, m]) => `${c} % ${m} = 0`),
  );
  const sub = fc.tuple(table, int, fc.constantFrom("", "NOT ")).chain(([name, c, not]) => {
    const inner = base(name, "s");
    return condition0(inner).map((where) => {
      const column = inner.ints[0] ?? "";
      return [
        `${not}EXISTS (SELECT 1 FROM ${inner.sql} WHERE ${column} = ${c} AND (${where}))`,
        `${c} IN (SELECT ${column} FROM ${inner.sql} WHERE ${where})`,
        `${c} > (SELECT count(*) FROM ${inner.sql} WHERE ${column} < ${c} AND (${where}))`,
        `${c} = (SELECT max(${column}) FROM ${inner.sql} WHERE ${where})`,
      ] as const;
    });
  });
  const nested = fc.tuple(sub, fc.integer({ min: 0, max: 3 })).map(([forms, i]) => forms[i] ?? forms[0]);
  const one = fc.oneof({ arbitrary: leaf, weight: 4 }, { arbitrary: nested, weight: 1 });
  return fc
    .array(fc.tuple(one, fc.constantFrom("AND", "OR"), fc.boolean()), { minLength: 1, maxLength: 3 })
    .map((parts) => parts.map(([c, o, not], i) => `${i === 0 ? "" : ` ${o} `}${not ? "NOT " : ""}(${c})`).join(""));
}

/** Without subqueries. */
function condition0(source: Source): fc.Arbitrary<string> {
  const int = fc.constantFrom(...source.ints);
  const text = fc.constantFrom(...source.texts);
  return fc.oneof(
    fc.tuple(int, fc.integer({ min: 0, max: 100 })).map(([c, v]) => `${c} < ${v}`),
    fc.tuple(text, fc.constantFrom(...WORDS)).map(([c, v]) => `${c} <> ${quote(v)}`),
    fc.constant("1 = 1"),
  );
}

function joined(left: Source, right: Source): fc.Arbitrary<Source> {
  return fc
    .tuple(
      fc.constantFrom("JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"),
      fc.constantFrom(...left.ints),
      fc.constantFrom(...right.ints),
    )
    .map(([kind, a, b]) => ({
      sql: `${left.sql} ${kind} ${right.sql} ON ${a} = ${b}`,
      ints: [...left.ints, ...right.ints],
      texts: [...left.texts, ...right.texts],
    }));
}

const from: fc.Arbitrary<Source> = fc.oneof(
  { arbitrary: fc.tuple(table, alias).map(([t, a]) => base(t, a)), weight: 2 },
  {
    arbitrary: fc.tuple(table, table).chain(([a, b]) => joined(base(a, "x"), base(b, "y"))),
    weight: 2,
  },
  {
    arbitrary: fc.tuple(table, table).chain(([a, b]) => {
      const inner = base(a, "i");
      return condition(inner).chain((where) => {
        const columns = [...inner.ints.map((c, n) => `${c} AS n${n}`), ...inner.texts.map((c, n) => `${c} AS s${n}`)];
        const derived: Source = {
          sql: `(SELECT ${columns.join(", ")} FROM ${inner.sql} WHERE ${where}) d`,
          ints: inner.ints.map((_, n) => `d.n${n}`),
          texts: inner.texts.map((_, n) => `d.s${n}`),
        };
        return fc.oneof(fc.constant(derived), joined(derived, base(b, "y")));
      });
    }),
    weight: 1,
  },
);

interface Select {
  readonly sql: string;
}

const plainSelect: fc.Arbitrary<Select> = from.chain((source) =>
  fc
    .tuple(condition(source), fc.constantFrom(...source.ints), fc.constantFrom(...source.texts), fc.boolean())
    .map(([where, n, s, distinct]) => ({
      sql: `SELECT ${distinct ? "DISTINCT " : ""}${n} AS n, ${s} AS s FROM ${source.sql} WHERE ${where}`,
    })),
);

const grouped: fc.Arbitrary<Select> = from.chain((source) =>
  fc
    .tuple(
      condition(source),
      fc.constantFrom(...source.ints),
      fc.constantFrom(...source.texts),
      fc.constantFrom(
        "count(*)",
        "count(N)",
        "sum(N)",
        "min(N)",
        "max(N)",
        "count(DISTINCT N)",
        "count(*) FILTER (WHERE N > 20)",
      ),
      fc.boolean(),
    )
    .map(([where, n, s, aggregate, having]) => ({
      sql: `SELECT ${aggregate.replace(/\bN\b/g, n)} AS n, ${s} AS s FROM ${source.sql} WHERE ${where} GROUP BY ${s}${
        having ? " HAVING count(*) > 1" : ""
      }`,
    })),
);

const select = fc.oneof({ arbitrary: plainSelect, weight: 3 }, { arbitrary: grouped, weight: 1 });

/** `n` a number, `s` a text. */
export function queries(): fc.Arbitrary<string> {
  const set = fc
    .tuple(select, fc.constantFrom("UNION", "UNION ALL", "INTERSECT", "EXCEPT"), select)
    .map(([a, op, b]) => `${a.sql} ${op} ${b.sql}`);
  const cte = fc
    .tuple(select, select, fc.constantFrom("people", "c", "items"))
    .map(([a, b, name]) => `WITH ${name} AS (${a.sql}) SELECT n, s FROM ${name} UNION ALL (${renamed(b.sql, name)})`);
  const window = plainSelect.map(
    ({ sql }) =>
      `SELECT n + row_number() OVER (PARTITION BY s ORDER BY n) AS n, s FROM (SELECT DISTINCT * FROM (${sql}) q0) q WHERE n IS NOT NULL`,
  );
  const whole = from.chain((source) =>
    condition(source).map(
      (where) => `SELECT count(*) AS n, min(${source.texts[0]}) AS s FROM ${source.sql} WHERE ${where}`,
    ),
  );
  return fc.oneof(
    { arbitrary: select.map((s) => s.sql), weight: 4 },
    { arbitrary: set, weight: 2 },
    { arbitrary: cte, weight: 2 },
    { arbitrary: window, weight: 1 },
    { arbitrary: whole, weight: 2 },
  );
}

/** A common table expression that hides a table has other columns: what comes after it leaves that table alone. */
function renamed(sql: string, name: string): string {
  return new RegExp(`\\b${name} `).test(sql) ? `SELECT n, s FROM ${name}` : sql;
}
