/** The front door of the movers: everything that moves rows between the tiers; see docs/internals/seam.md. */
export { type MoverContext } from "./context.ts";
export { register, type RegisterResult } from "./register.ts";
export { type LakePartition, type RegisterOptions } from "./register-checks.ts";
export { findTable } from "./table-facts.ts";
export { asTiered, type TieredRelation } from "./tiered.ts";
export { tier, type TierOptions, type TierResult } from "./tier.ts";
export { premake } from "./premake.ts";
export { follow } from "./follow.ts";
export { dropLeaves, type DropResult } from "./drop-leaves.ts";
export { recover, type Recovered, removeAbandonedFiles } from "./recover.ts";
export { Passes, type PassOptions, type PassResult } from "./pass.ts";
export { TABLE_STEPS, type TableStep } from "./steps.ts";
export { directCommit } from "./direct.ts";
export { foldRelation, type FoldOptions, type FoldResult } from "./fold.ts";
export { changePolicy, POLICY, policyLines, type PolicyChange, type PolicyLine, policyOf } from "./policy.ts";
export { unregister, type UnregisterOptions, type UnregisterResult } from "./unregister.ts";
export { type Difference, verifyTable, type VerifyOptions, type VerifyReport } from "./verify.ts";
export { retain, type RetainResult } from "./retain.ts";
export { compact, type CompactOptions, type CompactResult } from "./compact.ts";
export { rewriteManifests, type ManifestsResult } from "./manifests.ts";
export {
  answerMaintenance,
  maintain,
  type MaintainAnswer,
  maintainRelation,
  PASSES,
  type PassName,
  passesOf,
  SourceUpkeep,
} from "./maintain.ts";
export { adoptLake, type RestoreResult } from "./restore.ts";
export { forkLake, type ForkOptions } from "./restore-fork.ts";
export type { FlushResult } from "./mirror/flush.ts";
export { Pump, type PumpSettings, type PumpStatus } from "./mirror/pump.ts";
export { registerMirrored, type MirrorOptions, type MirrorResult } from "./mirror/onboard.ts";
export { type CopyProgress } from "./mirror/copy.ts";
export { tendCopies } from "./mirror/copies.ts";
export { healthWarnings, type LakeHealth, lakeHealth } from "./maintain-health.ts";
export { type MirrorReport, verifyMirrored } from "./mirror/verify-mirror.ts";
export { resync, type ResyncResult } from "./mirror/resync.ts";
export { guardSlot, readLags, readSlotReading } from "./mirror/guard.ts";
