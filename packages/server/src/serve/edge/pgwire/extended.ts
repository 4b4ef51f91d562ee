/**
 * The extended protocol: prepared statements and portals, of the session, of the source, and of the edge itself. After an error
 * everything up to the next Sync is skipped; that is the caller's doing.
 * Source: https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-EXT-QUERY
 */
import type { Prepared, WireColumn, WireParam } from "../../session/session.ts";
import { writeBare, writeComplete, writeParameterDescription, writeRowDescription } from "./backend.ts";
import type { Format } from "./cell-writers.ts";
import type { Client } from "./client.ts";
import { BodyReader, type FrontendMessage, utf8 } from "./frontend-reader.ts";
import { parameterText } from "./parameters.ts";
import type { Plan } from "./plans.ts";
import { type Outcome, prepareBySession, requireAlive, runBySession, sameColumns } from "./statements.ts";
import { messageOf, Relayed, type Upstream } from "./upstream.ts";
import { pgError } from "./wire-errors.ts";

interface Statement {
  readonly plan: Plan | null;
  readonly way: "session" | "mapped" | "catalog" | "edge" | "empty";
  readonly types: readonly number[];
  /** Of the session's. */
  readonly prepared: Prepared | null;
}

interface Portal {
  readonly statement: Statement;
  readonly params: readonly WireParam[];
  readonly formats: readonly Format[];
  /** Once it runs. */
  outcome: Outcome | null;
  finished: boolean;
}

/** What one client may keep; Postgres has no bound, memory has. */
const MAX_STATEMENTS = 10_000;

export class ExtendedQuery {
  readonly #client: Client;
  readonly #statements = new Map<string, Statement>();
  readonly #portals = new Map<string, Portal>();

  constructor(client: Client) {
    this.#client = client;
  }

  async handle({ type, body }: FrontendMessage): Promise<void> {
    switch (type) {
      case "P":
        return this.#parse(body);
      case "B":
        return this.#bind(body);
      case "D":
        return this.#describe(body);
      case "E":
        return this.#execute(body);
      case "C":
        return this.#close(body);
      default:
        throw pgError("08P01", `invalid frontend message type ${type.charCodeAt(0)}`);
    }
  }

  /** Ends what ran outside of a transaction block, and with it its portals. */
  async sync(): Promise<void> {
    const { engines, commands } = this.#client;
    const { transaction } = engines;
    const status = engines.mapped?.status;
    await engines.sync();
    // The source fails its transaction by itself when a COMMIT of its own cannot be done at the Sync.
    if (status === "T" && engines.mapped?.status === "E") transaction.fail();
    if (transaction.implicit) await commands.endWith(transaction.status === "T" ? "COMMIT" : "ROLLBACK");
    if (transaction.status === "I") await this.#closePortals();
  }

  /** A simple query ends the unnamed statement and portal. */
  async abandon(): Promise<void> {
    this.#statements.delete("");
    await this.#dropPortal("");
  }

  /** DEALLOCATE ALL and DISCARD ALL. */
  async forget(): Promise<void> {
    this.#statements.clear();
    await this.#closePortals();
  }

  async #parse(body: Buffer): Promise<void> {
    const { engines, out } = this.#client;
    const fields = new BodyReader(body);
    const name = fields.text();
    const sql = fields.text();
    const types = Array.from({ length: fields.count() }, () => fields.uint32());
    fields.done();
    if (name !== "" && this.#statements.has(name))
      throw pgError("42P05", `prepared statement "${name}" already exists`);
    if (this.#statements.size >= MAX_STATEMENTS)
      throw pgError("54000", "too many prepared statements", {}, "limit_exceeded");
    if (name === "") this.#statements.delete(name);
    const plans = await this.#client.plan(sql);
    if (plans.length > 1) throw pgError("42601", "cannot insert multiple commands into a prepared statement");
    const plan = plans[0] ?? null;
    requireAlive(engines, plan);
    if (plan === null) {
      this.#statements.set(name, { plan, way: "empty", types, prepared: null });
      return writeBare(out, "1");
    }
    const way = plan.way === "edge" && (await this.#isSources(plan)) ? "mapped" : plan.way;
    if (way === "mapped" || way === "catalog") {
      const text = way === "catalog" ? plan.sourceText : sql;
      const rest = body.subarray(body.length - 2 - 4 * types.length);
      await this.#relay(way, messageOf("P", Buffer.from(`${name}\0${text}\0`, "utf8"), rest), "1");
      this.#statements.set(name, { plan, way, types, prepared: null });
      return;
    }
    const prepared = way === "session" ? await prepareBySession(engines.session, plan, types) : null;
    this.#statements.set(name, { plan, way, types, prepared });
    writeBare(out, "1");
  }

  /** Cursors and prepared statements of SQL that are the source's own, and SHOW. */
  #isSources(plan: Plan): Promise<boolean> {
    return this.#client.commands.goesToSource(plan);
  }

  async #bind(body: Buffer): Promise<void> {
    const fields = new BodyReader(body);
    const portalName = fields.text();
    const name = fields.text();
    const statement = this.#statement(name);
    requireAlive(this.#client.engines, statement.plan);
    if (portalName !== "" && this.#portals.has(portalName))
      throw pgError("42P03", `cursor "${portalName}" already exists`);
    await this.#dropPortal(portalName);
    if (statement.way === "mapped" || statement.way === "catalog") {
      await this.#relay(statement.way, messageOf("B", body), "2");
      this.#portals.set(portalName, { statement, params: [], formats: [], outcome: null, finished: false });
      return;
    }
    const paramFormats = Array.from({ length: fields.count() }, () => fields.int16());
    const count = fields.count();
    const values = Array.from({ length: count }, () => {
      const size = fields.int32();
      return size < 0 ? null : fields.bytes(size);
    });
    const formats = Array.from({ length: fields.count() }, () => fields.int16());
    fields.done();
    const wanted = statement.prepared?.parameters ?? [];
    const expected = statement.prepared === null ? count : wanted.length;
    if (count !== expected) {
      throw pgError(
        "08P01",
        `bind message supplies ${count} parameters, but prepared statement "${name}" requires ${expected}`,
      );
    }
    const params = values.map((value, i) => {
      if (value === null) return null;
      const format = formatAt(paramFormats, i, count);
      return format === 1 ? parameterText(value, wanted[i]?.typeOid ?? statement.types[i] ?? 0) : utf8(value);
    });
    const columns = statement.prepared?.columns ?? [];
    const shown = columns.map((_, i): Format => (formatAt(formats, i, columns.length) === 1 ? 1 : 0));
    this.#portals.set(portalName, { statement, params, formats: shown, outcome: null, finished: false });
    writeBare(this.#client.out, "2");
  }

  async #describe(body: Buffer): Promise<void> {
    const fields = new BodyReader(body);
    const kind = String.fromCharCode(fields.byte());
    const name = fields.text();
    const { out, commands } = this.#client;
    if (kind === "P" && name !== "" && !this.#portals.has(name)) {
      // A cursor of SQL is a portal too: here, or at the source.
      const columns = commands.cursorColumns(name);
      if (columns) return writeRowDescription(out, columns, []);
      if (this.#client.engines.mapped) return this.#relay("mapped", messageOf("D", body), "Tn");
    }
    const statement = kind === "S" ? this.#statement(name) : this.#portal(name).statement;
    requireAlive(this.#client.engines, statement.plan);
    if (statement.way === "mapped" || statement.way === "catalog") {
      return this.#relay(statement.way, messageOf("D", body), "Tn");
    }
    if (kind === "S") {
      const parameters = statement.prepared?.parameters.map(({ typeOid }) => typeOid) ?? statement.types;
      writeParameterDescription(out, parameters);
    }
    const columns = await this.#columns(statement);
    if (columns === null) return writeBare(out, "n");
    writeRowDescription(out, columns, kind === "P" ? this.#portal(name).formats : []);
  }

  async #columns({ way, plan, prepared }: Statement): Promise<readonly WireColumn[] | null> {
    if (way === "edge" && plan !== null) return this.#client.commands.columns(plan);
    return prepared?.columns ?? null;
  }

  async #execute(body: Buffer): Promise<void> {
    const fields = new BodyReader(body);
    const name = fields.text();
    const max = fields.int32();
    fields.done();
    const portal = this.#portal(name);
    const { statement } = portal;
    const { out, engines } = this.#client;
    requireAlive(engines, statement.plan);
    if (statement.way === "empty") return writeBare(out, "I");
    if (statement.way === "mapped" || statement.way === "catalog") return this.#executeAtSource(statement.way, body);
    if (portal.finished) {
      // Run to its end once: there is nothing more, and it is not run again.
      return writeComplete(out, portal.outcome?.tag(0) ?? "SELECT 0");
    }
    portal.outcome ??= await this.#start(portal);
    if (portal.outcome === null) {
      portal.finished = true;
      return;
    }
    const { cursor, tag } = portal.outcome;
    if (cursor === null) {
      portal.finished = true;
      return writeComplete(out, tag(0));
    }
    const { rows, done } = await cursor.send(out, portal.formats, this.#client.textSettings, Math.max(max, 0));
    if (!done) return writeBare(out, "s");
    portal.finished = true;
    await cursor.close();
    writeComplete(out, tag(rows));
  }

  async #start({ statement, params }: Portal): Promise<Outcome | null> {
    const { engines, commands } = this.#client;
    const { plan, prepared } = statement;
    if (plan !== null && statement.way === "edge") return commands.run(plan, params);
    if (prepared === null) throw pgError("XX000", "the statement was not prepared");
    await this.#beginIfPipelined();
    const outcome = await runBySession(engines, prepared, params);
    // A table that was changed since: the client would misread the rows.
    const described = prepared.columns;
    if (described && outcome.cursor && !sameColumns(described, outcome.cursor.columns)) {
      await outcome.cursor.close();
      throw pgError("0A000", "cached plan must not change result type");
    }
    return outcome;
  }

  /** Statements between two Syncs are one transaction: it takes a look at what follows to know whether this is the only one. */
  async #beginIfPipelined(): Promise<void> {
    const { transaction } = this.#client.engines;
    if (transaction.status !== "I") return;
    this.#client.out.flush();
    const next = await this.#client.reader.peek();
    if (next !== null && next.type !== "S") transaction.beginImplicit();
  }

  async #close(body: Buffer): Promise<void> {
    const fields = new BodyReader(body);
    const kind = String.fromCharCode(fields.byte());
    const name = fields.text();
    const found = kind === "S" ? this.#statements.get(name) : this.#portals.get(name)?.statement;
    if (kind === "S") this.#statements.delete(name);
    else await this.#dropPortal(name);
    if (found?.way === "mapped" || found?.way === "catalog") return this.#relay(found.way, messageOf("C", body), "3");
    writeBare(this.#client.out, "3");
  }

  /** Sends one message and relays its answer. */
  async #relay(way: "mapped" | "catalog", message: Buffer, until: string): Promise<void> {
    const { engines } = this.#client;
    const upstream = await engines.upstream(way);
    upstream.unsynced = true;
    const answer = await engines.during(upstream, () =>
      upstream.exchange(Buffer.concat([message, FLUSH]), { until, errorEnds: true, hide: "" }),
    );
    if (answer.error) throw new Relayed(answer.error.message);
  }

  async #executeAtSource(way: "mapped" | "catalog", body: Buffer): Promise<void> {
    const { engines, out } = this.#client;
    const upstream: Upstream = await engines.upstream(way);
    upstream.unsynced = true;
    const options = { until: "CIsG", errorEnds: true, hide: "" };
    await engines.during(upstream, async () => {
      let answer = await upstream.exchange(Buffer.concat([messageOf("E", body), FLUSH]), options);
      if (answer.type === "G") {
        const after = this.#client.feedCopy(upstream, options);
        // The source answers a COPY's end only when asked to.
        answer = await after;
      }
      if (answer.error) throw new Relayed(answer.error.message);
    });
    await out.relieve();
  }

  #statement(name: string): Statement {
    const found = this.#statements.get(name);
    if (!found) {
      const shown = name === "" ? "unnamed prepared statement" : `prepared statement "${name}"`;
      throw pgError("26000", `${shown} does not exist`);
    }
    return found;
  }

  #portal(name: string): Portal {
    const found = this.#portals.get(name);
    if (!found) throw pgError("34000", `portal "${name}" does not exist`);
    return found;
  }

  async #dropPortal(name: string): Promise<void> {
    const found = this.#portals.get(name);
    this.#portals.delete(name);
    await found?.outcome?.cursor?.close();
  }

  async #closePortals(): Promise<void> {
    for (const name of this.#portals.keys()) await this.#dropPortal(name);
  }
}

const FLUSH = messageOf("H");

/** No format means text, one means all. */
function formatAt(formats: readonly number[], index: number, count: number): number {
  if (formats.length === 0) return 0;
  if (formats.length !== 1 && formats.length !== count) {
    throw pgError("08P01", `bind message has ${formats.length} formats for ${count} values`);
  }
  return (formats.length === 1 ? formats[0] : formats[index]) ?? 0;
}
