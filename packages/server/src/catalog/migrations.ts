/** The catalog's migrations, forward only. Their SQL is in modules, so that the build needs no copying of files. */
import { CATALOG_SQL } from "./sql/0001-catalog.ts";
import { CLIENT_FUNCTIONS_SQL } from "./sql/0002-client-functions.ts";
import { MIRROR_SQL } from "./sql/0003-mirror.ts";
import { SERVE_SQL } from "./sql/0004-serve.ts";
import { MIRROR_DDL_SQL } from "./sql/0005-mirror-ddl.ts";

export const CATALOG_SCHEMA = "spillway";

export interface CatalogMigration {
  readonly id: number;
  readonly name: string;
  readonly sql: string;
}

export const CATALOG_MIGRATIONS: readonly CatalogMigration[] = [
  { id: 1, name: "catalog", sql: CATALOG_SQL },
  { id: 2, name: "client functions", sql: CLIENT_FUNCTIONS_SQL },
  { id: 3, name: "mirror", sql: MIRROR_SQL },
  { id: 4, name: "serve", sql: SERVE_SQL },
  { id: 5, name: "mirror ddl", sql: MIRROR_DDL_SQL },
];
