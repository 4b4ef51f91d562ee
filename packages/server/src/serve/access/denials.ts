/** The typed refusals of the gate. Positions are 1-based, in characters of the statement. */
import { SpillwayError } from "@spillway/base/errors";

export interface At {
  readonly position?: number;
}

const facts = (sqlstate: string, at: At): { details: Record<string, unknown> } => ({
  details: { sqlstate, ...(at.position === undefined ? {} : { position: at.position }) },
});

/** A table that does not exist and one that no grant covers are the same to the user. */
export const noSuchTable = (name: string, at: At = {}): SpillwayError =>
  new SpillwayError("access_denied", `relation ${JSON.stringify(name)} does not exist`, facts("42P01", at));

export const noPrivilege = (privilege: string, name: string, at: At = {}): SpillwayError =>
  new SpillwayError("access_denied", `no permission to ${privilege} on table ${name}`, facts("42501", at));

export const policyForbids = (what: string, name: string, at: At = {}): SpillwayError =>
  new SpillwayError("access_denied", `a policy on table ${name} does not let you ${what}`, facts("42501", at));

export const unqualified = (name: string, at: At = {}): SpillwayError =>
  new SpillwayError("access_denied", `the table ${name} must be written with its schema in a statement that writes`, {
    ...facts("42P01", at),
    remedy: "Write schema.table: the search path does not begin with public.",
  });

export const statementRefused = (what: string, at: At = {}): SpillwayError =>
  new SpillwayError("access_statement_refused", `${what} is not run for clients`, facts("0A000", at));

export const functionRefused = (name: string, at: At = {}): SpillwayError =>
  new SpillwayError("access_function_refused", `the function ${name} is not available`, facts("42883", at));

export const typeRefused = (name: string, at: At = {}): SpillwayError =>
  new SpillwayError("access_function_refused", `the type ${name} is not available`, facts("42704", at));

export const settingRefused = (name: string, at: At = {}): SpillwayError =>
  new SpillwayError("access_setting_refused", `the setting ${name} is not available`, facts("42704", at));

export const brokenPolicy = (why: string, at: At = {}): SpillwayError =>
  new SpillwayError("access_policy_invalid", `the table cannot be read: ${why}`, facts("42501", at));
