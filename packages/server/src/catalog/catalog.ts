/** The front door of the catalog component; see docs/internals/seam.md. */
export type { Db } from "./db.ts";
export { CATALOG_MIGRATIONS, CATALOG_SCHEMA, type CatalogMigration } from "./migrations.ts";
export * from "./rows.ts";
export {
  durationInKeyUnits,
  KEY_INFINITY,
  KEY_MIN,
  KEY_NEG_INFINITY,
  KEY_TYPES,
  keyExpression,
  type KeyKind,
  keyLiteral,
  keyText,
} from "./key.ts";
export {
  CAPTURE_TRIGGER,
  deltaColumn,
  deltaName,
  deltaTable,
  landingName,
  PARENT_TRUNCATE_TRIGGER,
  TRUNCATE_TRIGGER,
  truncateBytes,
  WORKER_CHANNEL,
} from "./names.ts";
export { SQL_STATES } from "./sqlstates.ts";
export {
  liveColumns,
  loadRelation,
  loadRelationByName,
  loadRelationByOid,
  loadRelations,
  resumeRelation,
  stopRelation,
} from "./relations.ts";
export { loadBands } from "./bands.ts";
export { loadLakeTable, loadLakeTableByName, loadLakeTables } from "./lake-tables.ts";
export {
  abandonedFiles,
  abandonOp,
  abandonOrphans,
  finishOp,
  forgetStaged,
  loadOp,
  noteOp,
  openOp,
  type OpenOp,
  recentOps,
  stageFiles,
} from "./journal.ts";
export { appendFileLog, type FileLogEntry, type FileLogTarget, LOG_FOLDER, readFileLog } from "./file-log.ts";
export {
  type Absorbed,
  applyLakeCommit,
  type BandChange,
  type BandPut,
  commitLake,
  type CommitOptions,
  type CommitResult,
  type DoomedFile,
  type LakeCommit,
  lookUpOutcome,
  PointerConflict,
  type PointerMove,
  type SeamMove,
} from "./commit.ts";
export {
  type CaptureColumn,
  type CaptureSpec,
  type CaptureTarget,
  createCaptureFunctions,
  createCaptureTriggers,
  createDelta,
  createParentTrigger,
  createTruncateFunction,
  dropCaptureFunction,
  dropCaptureTriggers,
  dropDelta,
  dropTruncateFunction,
} from "./capture.ts";
export {
  captureSpecOf,
  columnSignature,
  insertRelation,
  installCapture,
  installRelation,
  loadCaptureSpec,
  type NewRelation,
  noteLandingFile,
  putColumns,
} from "./install.ts";
export { carriedPosition, COPIED_KEY, LSN_KEY, requireSnapshotAtLsn, snapshotAtLsn } from "./lsn-view.ts";
export { maxKey, type Partition, readPartitions } from "./partitions.ts";
export {
  type RawColumn,
  type RawType,
  readTableColumns,
  readTypes,
  type TableColumn,
  tableColumnsOf,
} from "./table-columns.ts";
export {
  loadWarehouse,
  ownerPath,
  ownershipFault,
  printOwner,
  readIdentity,
  readOwner,
  requireClaim,
  requireOwnership,
  type ServerIdentity,
  type WarehouseRow,
} from "./identity.ts";
export { claimLake, type ClaimRequest, RENEW_EVERY_MS, renewOwnership, requireClaimable, WATCH_MS } from "./claim.ts";
export { init, type InitOptions, type InitResult, requireCatalog } from "./init.ts";
export {
  answerRequest,
  awaitRequest,
  claimRequests,
  fileRequest,
  pruneRequests,
  readRequest,
  type RequestAnswer,
  type WorkRequest,
} from "./requests.ts";
export type { CopyStatus, MirrorStatus, VerifiedStatus } from "./mirror-status.ts";
export { deltaBacklog, readStatus, type SourceStatus, type TableStatus, type WaitStatus } from "./status.ts";
