/**
 * The start-up phase: parameters, authentication, cancel key.
 * Source: https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP
 */
import { SpillwayError } from "@spillway/base/errors";
import type { Operation } from "./connection.ts";
import { passwordMessage, saslInitialMessage, saslResponseMessage, startupMessage } from "./frontend.ts";
import { md5Password, scramClient, type ScramClient } from "./scram.ts";
import { startupParameters, type RawTarget } from "./target.ts";

/** What start-up needs of the connection. */
interface StartupHost {
  readonly target: RawTarget;
  processId: number;
  secretKey: Buffer;
  send(bytes: Buffer): boolean;
  destroy(error: SpillwayError): void;
}

export class Startup implements Operation {
  readonly #host: StartupHost;
  readonly #done: Promise<void>;
  #resolve: () => void = () => {};
  #reject: (error: SpillwayError) => void = () => {};
  #scram: ScramClient | null = null;

  constructor(host: StartupHost) {
    this.#host = host;
    this.#done = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
  }

  run(): Promise<void> {
    this.#host.send(startupMessage(startupParameters(this.#host.target)));
    return this.#done;
  }

  message(type: number, buffer: Buffer, start: number, end: number): void {
    switch (String.fromCharCode(type)) {
      case "R":
        // The bytes are gone when this returns, and an answer may take a while.
        this.#authenticate(Buffer.from(buffer.subarray(start, end))).catch((error: unknown) => {
          const known = error instanceof SpillwayError;
          this.#host.destroy(
            known ? error : new SpillwayError("pg_auth_failed", "authentication failed", { cause: error }),
          );
        });
        return;
      case "K":
        this.#host.processId = buffer.readInt32BE(start);
        this.#host.secretKey = Buffer.from(buffer.subarray(start + 4, end));
        return;
      case "v":
        return this.#host.destroy(new SpillwayError("pg_protocol_error", "the server does not speak protocol 3.0"));
      case "Z":
        return this.#resolve();
      default:
        this.#host.destroy(new SpillwayError("pg_protocol_error", `message ${type} is not expected at start-up`));
    }
  }

  error(error: SpillwayError): void {
    this.#host.destroy(error);
  }

  fail(error: SpillwayError): void {
    this.#reject(error);
  }

  async #authenticate(body: Buffer): Promise<void> {
    const host = this.#host;
    const method = body.readInt32BE(0);
    switch (method) {
      case 0:
        return;
      case 3:
        host.send(passwordMessage(this.#password()));
        return;
      case 5:
        host.send(passwordMessage(md5Password(host.target.user, this.#password(), body.subarray(4, 8))));
        return;
      case 10: {
        const mechanisms = body.toString("latin1", 4).split("\0");
        if (!mechanisms.includes("SCRAM-SHA-256")) throw unsupported(`SASL ${mechanisms.join(" ").trim()}`);
        this.#scram = scramClient(this.#password());
        host.send(saslInitialMessage("SCRAM-SHA-256", this.#scram.first));
        return;
      }
      case 11:
        if (!this.#scram) throw unsupported("a SASL challenge without a mechanism");
        host.send(saslResponseMessage(await this.#scram.final(body.toString("utf8", 4))));
        return;
      case 12:
        if (!this.#scram) throw unsupported("a SASL result without an exchange");
        return this.#scram.verify(body.toString("utf8", 4));
      default:
        throw unsupported(`method ${method}`);
    }
  }

  #password(): string {
    const { password, user } = this.#host.target;
    if (password === undefined || password === "") {
      throw new SpillwayError("pg_auth_failed", `the server asks for a password for ${user} and none was given`);
    }
    return password;
  }
}

function unsupported(what: string): SpillwayError {
  return new SpillwayError("pg_auth_failed", `the server asks for an authentication that is not supported: ${what}`, {
    remedy: "Let the role in by scram-sha-256, md5, password or a client certificate in pg_hba.conf.",
  });
}
