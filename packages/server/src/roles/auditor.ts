/** The audit of a manager, put together from its parts. */
import { join } from "node:path";
import type { Clock } from "@spillway/base/clock";
import type { Logger } from "@spillway/base/log";
import type { Metrics } from "@spillway/base/metrics";
import { AuditLog, type Control } from "../control/control.ts";
import { type AccessControl, type Authenticator, type Decision, type LoginEvent } from "../serve/serve.ts";

export interface AdminOptions {
  readonly control: Control;
  readonly auth: Authenticator;
  readonly access: AccessControl;
  readonly audit: AuditLog;
  readonly version: string;
  readonly log: Logger;
}

export interface AuditorOptions {
  readonly control: Control;
  readonly clock: Clock;
  readonly log: Logger;
  readonly managerId: string;
  /** Managers that end leave their spool here to those that follow. */
  readonly stateDir: string;
  readonly metrics: Metrics;
}

/** The audit of a manager with the two ends that feed it: decisions of the gate, and logins. */
export interface Auditor {
  readonly audit: AuditLog;
  /** Throws `audit_unavailable` for a write that must not go on. */
  readonly onDecision: (decision: Decision) => void;
  readonly onLogin: (event: LoginEvent) => void;
}

export function createAuditor(options: AuditorOptions): Auditor {
  const { control, clock, log, managerId, stateDir, metrics } = options;
  const dropped = metrics.counter(
    "spillway_audit_dropped_total",
    "Records of the audit that could be kept nowhere: the control database was away and the spool full.",
  );
  const decisions = metrics.counter("spillway_access_decisions_total", "Decisions of the gate, by what was decided.");
  const audit = new AuditLog({
    control,
    clock,
    log,
    managerId,
    spoolFile: join(stateDir, `audit-${managerId}.spool`),
    onDropped: (count) => dropped.inc({}, count),
  });
  return {
    audit,
    onDecision: (decision) => {
      decisions.inc({ allowed: String(decision.allowed) });
      const { principal, database, kind, writes, objects, allowed, reason, shadow } = decision;
      // Settings and the ends of transactions decide nothing.
      if (allowed && objects.length === 0 && shadow.length === 0) return;
      audit.record(
        {
          action: kind,
          allowed,
          reason,
          object: objects.join(", "),
          userId: principal.userId,
          userName: principal.userName,
          tenantName: principal.tenantName,
          databaseName: database,
          details: shadow.length > 0 ? { shadow } : {},
        },
        writes && allowed,
      );
    },
    onLogin: ({ user, address, method, allowed, reason }) => {
      audit.record({ action: "login", allowed, reason, userName: user, address, details: { method } });
    },
  };
}
