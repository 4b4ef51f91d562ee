import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type Conninfo, type ConninfoContext, describeConninfo, parseConninfo } from "./conninfo.ts";
import { isWanted } from "./hosts.ts";
import { matchPassfile } from "./passfile.ts";

const context: ConninfoContext = { env: {}, osUser: "me", home: "/home/me", defaultHost: "/run/pg" };
const parse = (text: string, env: Record<string, string> = {}): Conninfo => parseConninfo(text, { ...context, env });
const hostsOf = (text: string): string[] => parse(text).hosts.map((h) => `${h.host} ${h.port}`);

/** Each case of the examples and of uri-regress of the libpq documentation and tests. */
describe("URLs", () => {
  test.each<[string, Partial<Conninfo>, string[]]>([
    ["postgresql://", { user: "me", database: "me" }, ["/run/pg 5432"]],
    ["postgres://localhost", { user: "me", database: "me" }, ["localhost 5432"]],
    ["postgresql://localhost:5433", {}, ["localhost 5433"]],
    ["postgresql://localhost/mydb", { database: "mydb" }, ["localhost 5432"]],
    ["postgresql://user@localhost", { user: "user", database: "user", password: null }, ["localhost 5432"]],
    ["postgresql://user:secret@localhost", { user: "user", password: "secret" }, ["localhost 5432"]],
    ["postgresql://u%20s:p%40%3A%2F%25@h/d%2Fb", { user: "u s", password: "p@:/%", database: "d/b" }, ["h 5432"]],
    ["postgresql://u:p@ss@h", { user: "u", password: "p@ss" }, ["h 5432"]],
    ["postgresql:///mydb?host=localhost&port=5433", { database: "mydb" }, ["localhost 5433"]],
    ["postgresql://[2001:db8::1234]/database", { database: "database" }, ["2001:db8::1234 5432"]],
    ["postgresql://u@[::1]:5433,h2", {}, ["::1 5433", "h2 5432"]],
    ["postgresql:///dbname?host=/var/lib/postgresql", { database: "dbname" }, ["/var/lib/postgresql 5432"]],
    ["postgresql://%2Fvar%2Flib%2Fpostgresql:99/dbname", {}, ["/var/lib/postgresql 99"]],
    [
      "postgresql://h1:123,h2:456/db?target_session_attrs=read-write",
      { targetSessionAttrs: "read-write" },
      ["h1 123", "h2 456"],
    ],
    ["postgresql://h1,h2:456/db", {}, ["h1 5432", "h2 456"]],
    ["postgresql://h1,h2/db?port=99", {}, ["h1 99", "h2 99"]],
    ["postgresql://h?ssl=true", { sslmode: "require" }, ["h 5432"]],
    [
      "postgresql://h?connect_timeout=10&application_name=a%20b",
      { connectTimeoutMs: 10_000, applicationName: "a b" },
      ["h 5432"],
    ],
    ["postgresql://h?connect_timeout=1", { connectTimeoutMs: 2000 }, ["h 5432"]],
    ["postgresql://h?connect_timeout=0", { connectTimeoutMs: 0 }, ["h 5432"]],
    [
      "postgresql://h?load_balance_hosts=random&options=-c%20geqo%3Doff",
      { loadBalanceHosts: true, options: "-c geqo=off" },
      ["h 5432"],
    ],
  ])("%s", (text, expected, hosts) => {
    expect(parse(text)).toMatchObject(expected);
    expect(hostsOf(text)).toEqual(hosts);
  });

  test.each([
    ["postgresql://h?nonsense=1", "nonsense is not known"],
    ["postgresql://h?sslmode", "sslmode has no value"],
    ["postgresql://h?ssl=1", "ssl= takes only true"],
    ["postgresql://h:99999", "port must be a whole number from 1 to 65535"],
    ["postgresql://h:x", "not name, name:port"],
    ["postgresql://[::1", "not name, name:port"],
    ["postgresql://h/%zz", "two hexadecimal digits"],
    ["postgresql://h/%00", "%00"],
    ["postgresql://h/%ff", "not UTF-8"],
    ["postgresql://h1,h2,h3?port=1,2", "3 hosts but 2 ports"],
    ["postgresql://h?sslmode=maybe", "sslmode must be one of"],
    ["postgresql://h?target_session_attrs=master", "target_session_attrs must be one of"],
    ["postgresql://h?service=x", "service is not known or not supported"],
    ["postgresql://h?sslcrl=x", "sslcrl is not known or not supported"],
    ["postgresql://h?client_encoding=LATIN1", "only be UTF8"],
    ["mydb", "neither a URL nor"],
    ["host = ", null],
    ["host='x", "closing quote"],
    ["=x", "without a keyword"],
    ["host=a\nport=1", "line break"],
  ])("%s is refused", (text, reason) => {
    if (reason === null) return expect(hostsOf(text)).toEqual(["/run/pg 5432"]);
    expect(() => parse(text)).toThrow(
      expect.objectContaining({ code: "pg_conninfo_invalid", message: expect.stringContaining(reason) }),
    );
  });

  test("a refusal never repeats the password", () => {
    for (const text of [
      "postgres://u:hunter2@h:x",
      "host=h password=hunter2 x",
      "hunter2=hunter2",
      "password='hunter2",
    ]) {
      expect(() => parse(text)).toThrow(expect.objectContaining({ message: expect.not.stringContaining("hunter2") }));
    }
  });
});

describe("keyword=value", () => {
  test("quotes, escapes, spaces", () => {
    const info = parse(`  host = h1,h2 port='1,2' user=a\\ b password = 'it\\'s \\\\ me' dbname='' options='-c a=b'`);
    expect(info).toMatchObject({ user: "a b", password: "it's \\ me", database: "a b", options: "-c a=b" });
    expect(info.hosts).toEqual([
      { host: "h1", hostaddr: null, port: 1 },
      { host: "h2", hostaddr: null, port: 2 },
    ]);
  });

  test("hostaddr", () => {
    expect(parse("host=db.example hostaddr=10.0.0.1").hosts).toEqual([
      { host: "db.example", hostaddr: "10.0.0.1", port: 5432 },
    ]);
    expect(parse("hostaddr=10.0.0.1").hosts).toEqual([{ host: "10.0.0.1", hostaddr: "10.0.0.1", port: 5432 }]);
    expect(() => parse("host=a,b hostaddr=10.0.0.1")).toThrow(/2 hosts but 1 values/);
  });

  test("any values survive quoting", () => {
    const value = fc.string({ minLength: 1 }).filter((v) => !/[\0\r\n]/.test(v));
    const quote = (v: string): string => `'${v.replaceAll("\\", "\\\\").replaceAll("'", "\\'")}'`;
    fc.assert(
      fc.property(value, value, value, (user, password, dbname) => {
        const text = `password=${quote(password)} user =${quote(user)} dbname= ${quote(dbname)}`;
        expect(parse(text)).toMatchObject({ user, password, database: dbname });
        const url = `postgres://${encodeURIComponent(user)}:${encodeURIComponent(password)}@h/${encodeURIComponent(dbname)}`;
        expect(parse(url)).toMatchObject({ user, password, database: dbname });
        expect(describeConninfo(parse(url))).toBe(
          `postgres://${encodeURIComponent(user)}@h:5432/${encodeURIComponent(dbname)}`,
        );
      }),
    );
  });
});

test("variables fill what the string leaves open", () => {
  const env = {
    PGHOST: "a,b",
    PGPORT: "7",
    PGUSER: "u",
    PGDATABASE: "d",
    PGPASSWORD: "p",
    PGSSLMODE: "require",
    PGTARGETSESSIONATTRS: "primary",
  };
  expect(parse("postgres://", env)).toMatchObject({
    user: "u",
    database: "d",
    password: "p",
    sslmode: "require",
    targetSessionAttrs: "primary",
  });
  expect(parse("postgres://", env).hosts.map((h) => `${h.host}:${h.port}`)).toEqual(["a:7", "b:7"]);
  expect(parse("postgres://x@c:8/e?sslmode=disable", env)).toMatchObject({
    user: "x",
    database: "e",
    sslmode: "disable",
  });
  expect(parse("user=x", { PGCONNECT_TIMEOUT: "5", PGAPPNAME: "app" })).toMatchObject({
    connectTimeoutMs: 5000,
    applicationName: "app",
  });
});

test("describes without secrets", () => {
  const info = parse("postgres://u:secret@h1,[::1]:2,%2Frun/db?target_session_attrs=standby");
  expect(describeConninfo(info)).toBe("postgres://u@h1:5432,[::1]:2,%2Frun:5432/db?target_session_attrs=standby");
});

test("the password file", () => {
  const file = [
    "# comment",
    "h1:5432:db:u:plain",
    "h\\:2:*:*:u:a\\:b\\\\c",
    "localhost:*:*:*:socket",
    "*:1:db:u:any:trailing",
    "broken",
  ].join("\n");
  const find = (host: string, port = 5432, database = "db", user = "u"): string | null =>
    matchPassfile(file, { database, user }, { host, hostaddr: null, port });
  expect(find("h1")).toBe("plain");
  expect(find("h1", 5432, "other")).toBeNull();
  expect(find("h:2", 9)).toBe("a:b\\c");
  expect(find("/run/pg")).toBe("socket");
  expect(find("elsewhere", 1)).toBe("any");
  expect(find("elsewhere")).toBeNull();
});

test("which servers target_session_attrs takes", () => {
  const states = [
    { inRecovery: false, readOnly: false },
    { inRecovery: false, readOnly: true },
    { inRecovery: true, readOnly: true },
  ];
  const taken = (attrs: Parameters<typeof isWanted>[0]): boolean[] => states.map((s) => isWanted(attrs, s));
  expect(taken("any")).toEqual([true, true, true]);
  expect(taken("read-write")).toEqual([true, false, false]);
  expect(taken("read-only")).toEqual([false, true, true]);
  expect(taken("primary")).toEqual([true, true, false]);
  expect(taken("standby")).toEqual([false, false, true]);
});
