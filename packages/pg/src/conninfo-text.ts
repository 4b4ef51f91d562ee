/**
 * The two text forms of a libpq connection string, taken apart into keywords and values. Nothing is interpreted here.
 * Source: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING
 */
import { SpillwayError } from "@spillway/base/errors";

/** Keyword to value, each as the text says. Lists (`host`, `hostaddr`, `port`) stay comma-separated. */
export type Keywords = Map<string, string>;

export function parseConninfoText(text: string): Keywords {
  if (/[\0\r\n]/.test(text)) throw invalid("it has a line break or a NUL character in it");
  return /^postgres(ql)?:\/\//.test(text) ? parseUrl(text) : parseKeyValue(text);
}

/** A refusal. The text itself is never repeated: it may hold a password. */
export function invalid(reason: string): SpillwayError {
  return new SpillwayError("pg_conninfo_invalid", `the connection string cannot be used: ${reason}`);
}

/** `postgres://[user[:password]@][host[:port],…][/database][?keyword=value&…]` */
function parseUrl(text: string): Keywords {
  const keywords: Keywords = new Map();
  const afterScheme = text.slice(text.indexOf("://") + 3);
  const [beforeQuery, query] = splitOnce(afterScheme, "?");
  const [authority, path] = splitOnce(beforeQuery, "/");
  // A password may hold an @ that was not encoded: the last one ends the user's part.
  const at = authority.lastIndexOf("@");
  if (at >= 0) {
    const [user, password] = splitOnce(authority.slice(0, at), ":");
    if (user !== "") keywords.set("user", decode(user));
    if (password !== null && password !== "") keywords.set("password", decode(password));
  }
  addHosts(keywords, authority.slice(at + 1));
  if (path !== null && path !== "") keywords.set("dbname", decode(path));
  for (const pair of query === null || query === "" ? [] : query.split("&")) addParameter(keywords, pair);
  return keywords;
}

function addHosts(keywords: Keywords, hostspec: string): void {
  if (hostspec === "") return;
  const specs = hostspec.split(",").map((spec) => {
    const match = /^(?:\[([0-9a-fA-F:.]+(?:%[^\]]+)?)\]|([^:[\]]*))(?::(\d*))?$/.exec(spec);
    if (!match) throw invalid("a host in it is not name, name:port or [ipv6]:port");
    return { host: match[1] ?? decode(match[2] ?? ""), port: match[3] ?? "" };
  });
  if (specs.some((s) => s.host !== "")) keywords.set("host", specs.map((s) => s.host).join(","));
  if (specs.some((s) => s.port !== "")) keywords.set("port", specs.map((s) => s.port).join(","));
}

function addParameter(keywords: Keywords, pair: string): void {
  const [name, value] = splitOnce(pair, "=");
  if (value === null) throw invalid(`the parameter ${decode(name)} has no value`);
  const keyword = decode(name);
  if (keyword === "ssl") {
    // Other drivers' way to say it; libpq takes only this value.
    if (value !== "true") throw invalid("ssl= takes only true; use sslmode=");
    keywords.set("sslmode", "require");
  } else {
    keywords.set(keyword, decode(value));
  }
}

function decode(text: string): string {
  if (/%(?![0-9a-fA-F]{2})/.test(text)) throw invalid("it has a % that is not followed by two hexadecimal digits");
  if (/%00/.test(text)) throw invalid("it has the forbidden value %00");
  try {
    return decodeURIComponent(text);
  } catch {
    throw invalid("its percent-encoding is not UTF-8");
  }
}

function splitOnce(text: string, separator: string): [string, string | null] {
  const at = text.indexOf(separator);
  return at < 0 ? [text, null] : [text.slice(0, at), text.slice(at + separator.length)];
}

/** `keyword = value keyword='a value with spaces, \' and \\'` */
function parseKeyValue(text: string): Keywords {
  const keywords: Keywords = new Map();
  let at = skipSpace(text, 0);
  while (at < text.length) {
    const name = /^[^\s=]+/.exec(text.slice(at))?.[0];
    if (name === undefined) throw invalid("it has a value without a keyword before the =");
    at = skipSpace(text, at + name.length);
    if (text[at] !== "=") throw invalid("a word in it has no = after it; it is neither a URL nor keyword=value pairs");
    const read = readValue(text, skipSpace(text, at + 1));
    keywords.set(name, read.value);
    at = skipSpace(text, read.end);
  }
  return keywords;
}

function skipSpace(text: string, from: number): number {
  let at = from;
  while (at < text.length && /\s/.test(text.charAt(at))) at += 1;
  return at;
}

function readValue(text: string, from: number): { value: string; end: number } {
  const quoted = text[from] === "'";
  let value = "";
  let at = quoted ? from + 1 : from;
  for (; at < text.length; at++) {
    const char = text.charAt(at);
    if (char === "\\") value += text.charAt(++at);
    else if (quoted && char === "'") return { value, end: at + 1 };
    else if (!quoted && /\s/.test(char)) return { value, end: at };
    else value += char;
  }
  if (quoted) throw invalid("a quoted value in it has no closing quote");
  return { value, end: at };
}
