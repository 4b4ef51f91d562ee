/** The monitor's API as a function from request to answer; sockets and TLS are the role's (`roles/monitor.ts`). */
import { BugError, isSpillwayError, messageOf, SpillwayError, type ErrorCode } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import { explain } from "../fsm/explain.ts";
import { dropNode, perform, setFormation, setMaintenance, setNode } from "../fsm/operator.ts";
import {
  dropRequest,
  formationRequest,
  maintenanceRequest,
  performRequest,
  settingsRequest,
  type SettingsRequest,
} from "../protocol/commands.ts";
import { MONITOR_PATHS } from "../protocol/http.ts";
import { nodeReport, registerRequest } from "../protocol/messages.ts";
import { parseMessage } from "../protocol/validate.ts";
import { sameText, type Brain } from "./brain.ts";
import { settingsOf, stateOf, uriOf } from "./views.ts";

export interface ApiRequest {
  readonly method: string;
  readonly path: string;
  readonly query: URLSearchParams;
  /** The bearer token, or ''. */
  readonly token: string;
  readonly body: string;
}

export interface ApiAnswer {
  readonly status: number;
  readonly body: unknown;
  /** When the body is a text and no JSON. */
  readonly contentType?: string;
}

export interface ApiOptions {
  readonly brain: Brain;
  readonly log: Logger;
  readonly adminToken: string;
  readonly registrationToken: string;
  /** For `show uri`. */
  readonly monitorUrls: readonly string[];
  readonly renderMetrics: () => string;
}

const MAX_WATCH_MS = 60_000;
const MAX_EVENTS_SHOWN = 2000;

type Handler = (request: ApiRequest) => unknown;

export class Api {
  readonly #o: ApiOptions;
  readonly #routes: ReadonlyMap<string, Handler>;

  constructor(options: ApiOptions) {
    this.#o = options;
    this.#routes = new Map<string, Handler>([...this.#nodeRoutes(), ...this.#adminRoutes()]);
  }

  /** Never throws: a failure becomes an answer with the error's code. */
  async handle(request: ApiRequest): Promise<ApiAnswer> {
    if (request.method === "GET" && request.path === MONITOR_PATHS.health) return this.#health();
    if (request.method === "GET" && request.path === MONITOR_PATHS.metrics) {
      return { status: 200, body: this.#o.renderMetrics(), contentType: "text/plain; version=0.0.4" };
    }
    try {
      const handler = this.#routes.get(`${request.method} ${request.path}`);
      if (!handler) throw new SpillwayError("ha_not_found", `there is no ${request.method} ${request.path}`);
      return { status: 200, body: await handler(request) };
    } catch (error) {
      return this.#failure(request, error);
    }
  }

  #health(): ApiAnswer {
    const { brain } = this.#o;
    const lagMs = brain.lagMs();
    const role = brain.leading ? "leader" : "standby";
    return { status: lagMs > 5000 ? 503 : 200, body: { role, leader: brain.leaderUrl, lagMs: Math.round(lagMs) } };
  }

  #failure(request: ApiRequest, error: unknown): ApiAnswer {
    if (!isSpillwayError(error)) {
      const bug = error instanceof BugError ? "a broken invariant" : "an unexpected failure";
      this.#o.log.error("request failed", { path: request.path, error: messageOf(error) });
      const internal = new SpillwayError("internal", `${bug} in the monitor, see its log`);
      return { status: 500, body: { error: internal.toJSON() } };
    }
    return { status: statusOf(error.code), body: { error: error.toJSON() } };
  }

  #nodeRoutes(): [string, Handler][] {
    const { brain } = this.#o;
    return [
      [
        `POST ${MONITOR_PATHS.nodeActive}`,
        (r) => brain.nodeActive(parseMessage(nodeReport, r.body, "report"), r.token),
      ],
      [
        `POST ${MONITOR_PATHS.register}`,
        (r) => {
          const { registrationToken, adminToken } = this.#o;
          if (!sameText(r.token, registrationToken) && !sameText(r.token, adminToken)) unauthorized("registration");
          return brain.register(parseMessage(registerRequest, r.body, "registration"));
        },
      ],
      [
        `GET ${MONITOR_PATHS.watch}`,
        async (r) => {
          const timeoutMs = Math.min(numberOf(r, "timeoutMs"), MAX_WATCH_MS);
          const [formation, node] = [textOf(r, "formation"), numberOf(r, "node")];
          return { version: await brain.watch(formation, node, r.token, numberOf(r, "version"), timeoutMs) };
        },
      ],
    ];
  }

  #adminRoutes(): [string, Handler][] {
    const { brain } = this.#o;
    const routes: [string, Handler][] = [
      [
        `GET ${MONITOR_PATHS.formations}`,
        () => ({
          formations: brain.formations().map((l) => ({ name: l.formation.name, nodes: l.formation.nodes.length })),
        }),
      ],
      [
        `POST ${MONITOR_PATHS.formations}`,
        async (r) => {
          const live = await brain.createFormation(parseMessage(formationRequest, r.body, "request").formation);
          return settingsOf(brain.look(live));
        },
      ],
      [`GET ${MONITOR_PATHS.state}`, (r) => stateOf(this.#look(r))],
      [`GET ${MONITOR_PATHS.settings}`, (r) => settingsOf(this.#look(r))],
      [
        `GET ${MONITOR_PATHS.events}`,
        (r) => {
          const limit = Math.min(r.query.has("limit") ? numberOf(r, "limit") : 10, MAX_EVENTS_SHOWN);
          return { events: brain.events(textOf(r, "formation"), limit) };
        },
      ],
      [
        `GET ${MONITOR_PATHS.uri}`,
        (r) => ({ formation: textOf(r, "formation"), uri: uriOf(this.#look(r)), monitors: this.#o.monitorUrls }),
      ],
      [
        `GET ${MONITOR_PATHS.explain}`,
        (r) => {
          const live = brain.formation(textOf(r, "formation"));
          return { formation: live.formation.name, lines: explain(brain.look(live), live.blocked) };
        },
      ],
      ...this.#changes(),
    ];
    return routes.map(([key, handler]) => [key, (r) => (this.#isAdmin(r) ? handler(r) : unauthorized("admin"))]);
  }

  #changes(): [string, Handler][] {
    const { brain } = this.#o;
    return [
      [
        `POST ${MONITOR_PATHS.perform}`,
        async (r) => {
          const request = parseMessage(performRequest, r.body, "request");
          return stateOf(brain.look(await brain.operate(request.formation, (d) => perform(d, request))));
        },
      ],
      [
        `POST ${MONITOR_PATHS.maintenance}`,
        async (r) => {
          const { formation, node, on, allowFailover } = parseMessage(maintenanceRequest, r.body, "request");
          return stateOf(brain.look(await brain.operate(formation, (d) => setMaintenance(d, node, on, allowFailover))));
        },
      ],
      [
        `POST ${MONITOR_PATHS.settings}`,
        async (r) => {
          const request = parseMessage(settingsRequest, r.body, "request");
          const live = await brain.operate(request.formation, (d) => {
            if (request.node !== null)
              setNode(d, request.node, present(request, ["candidatePriority", "replicationQuorum"]));
            const { numberSyncStandbys, ...rest } = present(request, [
              "numberSyncStandbys",
              "failoverWhenAsync",
              "requireSlots",
            ]);
            setFormation(d, numberSyncStandbys === undefined ? rest : { ...rest, numberSync: numberSyncStandbys });
          });
          return settingsOf(brain.look(live));
        },
      ],
      [
        `POST ${MONITOR_PATHS.drop}`,
        async (r) => {
          const { formation, node, force } = parseMessage(dropRequest, r.body, "request");
          return stateOf(brain.look(await brain.operate(formation, (d) => dropNode(d, node, force))));
        },
      ],
    ];
  }

  #look(request: ApiRequest): ReturnType<Brain["look"]> {
    return this.#o.brain.look(this.#o.brain.formation(textOf(request, "formation")));
  }

  #isAdmin(request: ApiRequest): boolean {
    return sameText(request.token, this.#o.adminToken);
  }
}

type Present<K extends keyof SettingsRequest> = { [P in K]?: NonNullable<SettingsRequest[P]> };

/** The named fields that were given. */
function present<K extends keyof SettingsRequest>(request: SettingsRequest, keys: readonly K[]): Present<K> {
  return Object.fromEntries(keys.filter((k) => request[k] !== null).map((k) => [k, request[k]])) as Present<K>;
}

function unauthorized(kind: string): never {
  throw new SpillwayError("ha_unauthorized", `this call needs the ${kind} token`);
}

function textOf(request: ApiRequest, key: string): string {
  const value = request.query.get(key);
  if (value === null || value === "") throw new SpillwayError("ha_bad_message", `${key} is missing`);
  return value;
}

function numberOf(request: ApiRequest, key: string): number {
  const text = textOf(request, key);
  if (!/^\d{1,15}$/.test(text)) throw new SpillwayError("ha_bad_message", `${key} is not a whole number`);
  return Number(text);
}

function statusOf(code: ErrorCode): number {
  switch (code) {
    case "ha_unauthorized":
      return 401;
    case "ha_not_found":
      return 404;
    case "ha_not_leader":
      return 421;
    case "ha_bad_message":
    case "usage":
      return 400;
    case "ha_store":
    case "disk_full":
    case "interrupted":
      return 503;
    default:
      return 409;
  }
}
