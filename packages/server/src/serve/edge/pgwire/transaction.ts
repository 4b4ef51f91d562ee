/**
 * One transaction over the session and the source. Each of the two joins when its first statement comes, with the isolation of BEGIN
 * and whatever was set since; so a snapshot is taken when Postgres would take it. Only one of the two may have written when it commits:
 * there is one COMMIT then, and it is atomic.
 */
import { SpillwayError } from "@spillway/base/errors";
import type { ServeSession } from "../../session/session.ts";
import type { TransactionStatus } from "./backend.ts";
import type { Upstream } from "./upstream.ts";
import { pgError } from "./wire-errors.ts";

export class WireTransaction {
  readonly #session: ServeSession;
  readonly #mapped: () => Upstream | null;
  /** What a party that joins late has to hear after BEGIN: settings and savepoints. */
  #journal: { readonly text: string; readonly savepoint: string | null }[] = [];
  #begin = "BEGIN";
  #sessionIn = false;
  #mappedIn = false;
  #sessionWrote = false;
  status: TransactionStatus = "I";
  /** Begun by the edge, for several statements that the client sent as one. */
  implicit = false;

  constructor(session: ServeSession, mapped: () => Upstream | null) {
    this.#session = session;
    this.#mapped = mapped;
  }

  get isFresh(): boolean {
    return !this.#sessionIn && !this.#mappedIn;
  }

  begin(text: string): void {
    this.status = "T";
    this.implicit = false;
    this.#begin = text;
  }

  beginImplicit(): void {
    if (this.status !== "I") return;
    this.begin("BEGIN");
    this.implicit = true;
  }

  /** BEGIN inside of an implicit transaction: it goes on as an explicit one. */
  makeExplicit(text: string): void {
    this.implicit = false;
    if (this.isFresh) this.#begin = text;
  }

  /** Before a statement of the session's. */
  async joinSession(writes: boolean): Promise<void> {
    if (this.status !== "T") return;
    if (!this.#sessionIn) {
      await this.#runSession(this.#begin);
      this.#sessionIn = true;
      for (const { text } of this.#journal) await this.#runSession(text);
    }
    this.#sessionWrote ||= writes;
  }

  /** Before a statement of the source's. */
  async joinMapped(upstream: Upstream): Promise<void> {
    if (this.status !== "T" || this.#mappedIn) return;
    await upstream.run(this.#begin);
    this.#mappedIn = true;
    for (const { text } of this.#journal) await upstream.run(text);
  }

  /** For whoever joins later. */
  record(text: string): void {
    if (this.status === "T") this.#journal.push({ text, savepoint: null });
  }

  fail(): void {
    if (this.status === "T") this.status = "E";
  }

  async savepoint(text: string, name: string): Promise<void> {
    await this.#both(text);
    this.#journal.push({ text, savepoint: name });
  }

  async release(text: string, name: string): Promise<void> {
    const at = this.#find(name);
    await this.#both(text);
    this.#journal = this.#journal.filter((entry, i) => i < at || entry.savepoint === null);
  }

  async rollbackTo(text: string, name: string): Promise<void> {
    const at = this.#find(name);
    await this.#both(text);
    this.#journal.length = at + 1;
    this.status = "T";
  }

  /** Ends it. Gives the tag: ROLLBACK when it had failed. Throws what refused the commit; it is over all the same. */
  async commit(): Promise<"COMMIT" | "ROLLBACK"> {
    if (this.status === "E") {
      await this.rollback();
      return "ROLLBACK";
    }
    const mapped = this.#mappedIn ? this.#mapped() : null;
    try {
      const both = mapped !== null && this.#sessionIn && this.#sessionWrote;
      if (both && (await mapped.value("SELECT pg_catalog.pg_current_xact_id_if_assigned()")) !== null) {
        throw new SpillwayError(
          "transaction_spans_tiers",
          "the transaction wrote to plain tables and to tables across the tiers, and was rolled back",
          { details: { sqlstate: "0A000" } },
        );
      }
      // The one that wrote goes first: the other has nothing to lose.
      if (this.#sessionIn && (this.#sessionWrote || mapped === null)) {
        await this.#runSession("COMMIT");
        this.#sessionIn = false;
      }
      if (mapped !== null) {
        this.#mappedIn = false;
        const { tag } = await mapped.run("COMMIT");
        if (tag === "ROLLBACK") throw pgError("40000", "the source rolled the transaction back");
      }
      if (this.#sessionIn) await this.#runSession("COMMIT");
      this.#clear();
      return "COMMIT";
    } catch (error) {
      await this.rollback();
      throw error;
    }
  }

  /** Never throws: what cannot be told to roll back has ended. */
  async rollback(): Promise<void> {
    if (this.#sessionIn || this.#session.status !== "idle") await this.#runSession("ROLLBACK").catch(() => {});
    const mapped = this.#mapped();
    if (this.#mappedIn && mapped?.isOpen) await mapped.run("ROLLBACK").catch(() => {});
    this.#clear();
  }

  #clear(): void {
    this.status = "I";
    this.implicit = false;
    this.#journal = [];
    this.#sessionIn = false;
    this.#mappedIn = false;
    this.#sessionWrote = false;
  }

  #find(name: string): number {
    const at = this.#journal.findLastIndex((entry) => entry.savepoint === name);
    if (at < 0) throw pgError("3B001", `savepoint "${name}" does not exist`);
    return at;
  }

  async #both(text: string): Promise<void> {
    if (this.#sessionIn) await this.#runSession(text);
    const mapped = this.#mapped();
    if (this.#mappedIn && mapped) await mapped.run(text);
  }

  async #runSession(text: string): Promise<void> {
    const result = await this.#session.run(await this.#session.prepare(text));
    await result.rowCount.catch(() => 0);
    await result.close();
  }
}
