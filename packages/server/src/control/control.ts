/** The front door of the control plane: tenants, databases, pools, users and what they may; see docs/internals/serving.md. */
export { Control, type ControlOptions, installControl } from "./plane.ts";
export type { BootstrapOptions, BootstrapResult } from "./bootstrap.ts";
export { CONTROL_MIGRATIONS, CONTROL_SCHEMA } from "./migrations.ts";
export {
  columnOf,
  type Field,
  type FieldType,
  type PathKind,
  type Resource,
  resourceNamed,
  RESOURCES,
} from "./resources.ts";
export {
  type ControlObject,
  createObject,
  deleteObject,
  EVERYTHING,
  getObject,
  labelOf,
  listObjects,
  pathToId,
  type Scope,
  updateObject,
} from "./objects.ts";
export type {
  AccessRules,
  ColumnPolicy,
  DatabaseInfo,
  LoginUser,
  PoolInfo,
  Privilege,
  RowPolicy,
  TableGrant,
} from "./rules.ts";
export {
  createAccessToken,
  createSession,
  forgetSessions,
  nodeToken,
  revokeSession,
  tokenKind,
  type TokenOwner,
} from "./tokens.ts";
export { hashPassword, makeVerifier, sameSecret, verifyPassword } from "./passwords.ts";
export { forgetFailures, lockedForMs, type LockoutRule, MAX_LOCK_MS, noteFailure } from "./lockout.ts";
export { type HeldLease, releaseLease, requireLease, takeLease } from "./leases.ts";
export { type AuditEvent, AuditLog, type AuditOptions, insertAudit } from "./audit.ts";
export {
  type ApplyOptions,
  applyManifest,
  type Change,
  diffManifest,
  exportManifest,
  type Manifest,
  parseManifest,
} from "./manifest.ts";
