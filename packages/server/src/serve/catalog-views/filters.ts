/**
 * The system catalogs that may be asked, each with the condition for rows that a user may see. The sets of oids are settings of the
 * connection, set before the query: `spillway.visible` (relations), `spillway.hidden_columns` (`oid.attnum`).
 * Source: https://www.postgresql.org/docs/current/catalogs.html
 */

const SEEN = "(SELECT pg_catalog.unnest(pg_catalog.current_setting('spillway.visible')::pg_catalog.oid[]))";
const HIDDEN_COLUMNS =
  "(SELECT pg_catalog.unnest(pg_catalog.current_setting('spillway.hidden_columns')::pg_catalog.text[]))";

/** Objects that initdb made have oids below this. */
const FIRST_USER_OID = 16_384;

/** A relation's oid: of the system, or seen. */
function relation(column: string): string {
  return `(${column} < ${FIRST_USER_OID} OR ${column} IN ${SEEN})`;
}

const SEEN_SCHEMAS = `(SELECT relnamespace FROM pg_catalog.pg_class WHERE oid IN ${SEEN})`;
const SYSTEM = `oid < ${FIRST_USER_OID}`;
const named = (schema: string, name: string): string =>
  `(${schema} IN ('pg_catalog', 'information_schema') OR EXISTS (SELECT 1 FROM pg_catalog.pg_class sc_c JOIN pg_catalog.pg_namespace sc_n ON sc_n.oid = sc_c.relnamespace WHERE sc_c.oid IN ${SEEN} AND sc_n.nspname = ${schema} AND sc_c.relname = ${name}))`;
const IS_HERE = "datname = pg_catalog.current_database()";
const NOBODY = "false";

/** By catalog; an empty condition shows every row; a catalog that is missing here cannot be asked. */
export const CATALOG_FILTERS: ReadonlyMap<string, string> = new Map([
  ["pg_class", relation("oid")],
  ["pg_attribute", `${relation("attrelid")} AND (attrelid::text || '.' || attnum) NOT IN ${HIDDEN_COLUMNS}`],
  ["pg_attrdef", `${relation("adrelid")} AND (adrelid::text || '.' || adnum) NOT IN ${HIDDEN_COLUMNS}`],
  ["pg_index", `${relation("indrelid")} AND ${relation("indexrelid")}`],
  ["pg_constraint", `(conrelid = 0 OR ${relation("conrelid")}) AND (confrelid = 0 OR ${relation("confrelid")})`],
  ["pg_inherits", `${relation("inhrelid")} AND ${relation("inhparent")}`],
  ["pg_partitioned_table", relation("partrelid")],
  ["pg_sequence", relation("seqrelid")],
  ["pg_trigger", relation("tgrelid")],
  ["pg_rewrite", relation("ev_class")],
  ["pg_policy", NOBODY],
  ["pg_statistic_ext", relation("stxrelid")],
  ["pg_foreign_table", relation("ftrelid")],
  ["pg_namespace", `${SYSTEM} OR nspname = 'public' OR oid IN ${SEEN_SCHEMAS}`],
  ["pg_type", `${SYSTEM} OR typrelid IN ${SEEN} OR (typrelid = 0 AND (typelem = 0 OR (SELECT st_t.typrelid = 0 OR st_t.typrelid < ${FIRST_USER_OID} OR st_t.typrelid IN ${SEEN} FROM pg_catalog.pg_type st_t WHERE st_t.oid = pg_type.typelem)))`],
  ["pg_enum", ""],
  ["pg_range", ""],
  ["pg_proc", SYSTEM],
  ["pg_operator", SYSTEM],
  ["pg_opclass", SYSTEM],
  ["pg_opfamily", SYSTEM],
  ["pg_amop", SYSTEM],
  ["pg_amproc", SYSTEM],
  ["pg_aggregate", `aggfnoid < ${FIRST_USER_OID}`],
  ["pg_am", ""],
  ["pg_cast", SYSTEM],
  ["pg_collation", ""],
  ["pg_conversion", SYSTEM],
  ["pg_language", ""],
  ["pg_extension", ""],
  ["pg_tablespace", ""],
  ["pg_ts_config", ""],
  ["pg_ts_dict", ""],
  ["pg_ts_parser", ""],
  ["pg_ts_template", ""],
  ["pg_event_trigger", NOBODY],
  ["pg_publication", NOBODY],
  ["pg_publication_rel", NOBODY],
  ["pg_publication_namespace", NOBODY],
  ["pg_publication_tables", NOBODY],
  ["pg_subscription", NOBODY],
  ["pg_foreign_server", NOBODY],
  ["pg_foreign_data_wrapper", NOBODY],
  ["pg_user_mappings", NOBODY],
  ["pg_default_acl", NOBODY],
  ["pg_seclabel", NOBODY],
  ["pg_seclabels", NOBODY],
  ["pg_shseclabel", NOBODY],
  ["pg_largeobject_metadata", NOBODY],
  ["pg_init_privs", NOBODY],
  ["pg_prepared_xacts", NOBODY],
  ["pg_prepared_statements", NOBODY],
  ["pg_cursors", NOBODY],
  ["pg_locks", NOBODY],
  ["pg_stat_activity", NOBODY],
  ["pg_stat_ssl", NOBODY],
  ["pg_stat_replication", NOBODY],
  ["pg_stat_database", IS_HERE],
  ["pg_stat_user_tables", relation("relid")],
  ["pg_stat_all_tables", relation("relid")],
  ["pg_statio_user_tables", relation("relid")],
  ["pg_stat_user_indexes", relation("relid")],
  ["pg_description", `${SYSTEM.replace("oid", "objoid")} OR (classoid = 'pg_catalog.pg_class'::pg_catalog.regclass AND objoid IN ${SEEN} AND (objoid::text || '.' || objsubid) NOT IN ${HIDDEN_COLUMNS})`],
  ["pg_shdescription", `objoid < ${FIRST_USER_OID}`],
  ["pg_depend", `(classid <> 'pg_catalog.pg_class'::pg_catalog.regclass OR ${relation("objid")}) AND (refclassid <> 'pg_catalog.pg_class'::pg_catalog.regclass OR ${relation("refobjid")})`],
  ["pg_shdepend", NOBODY],
  ["pg_database", IS_HERE],
  ["pg_roles", `rolname = pg_catalog.current_setting('spillway.user') OR ${SYSTEM}`],
  ["pg_user", NOBODY],
  ["pg_group", NOBODY],
  ["pg_auth_members", NOBODY],
  ["pg_db_role_setting", NOBODY],
  ["pg_settings", "name IN ('server_version', 'server_version_num', 'max_index_keys', 'max_identifier_length', 'search_path', 'TimeZone', 'standard_conforming_strings', 'lc_collate', 'server_encoding', 'block_size', 'integer_datetimes')"],
  ["pg_tables", named("schemaname", "tablename")],
  ["pg_views", named("schemaname", "viewname")],
  ["pg_matviews", named("schemaname", "matviewname")],
  ["pg_indexes", named("schemaname", "tablename")],
  ["pg_sequences", named("schemaname", "sequencename")],
  ["pg_timezone_names", ""],
  ["pg_timezone_abbrevs", ""],
  ["pg_available_extensions", NOBODY],
]); // prettier-ignore

/** The same for information_schema. */
export const SCHEMA_FILTERS: ReadonlyMap<string, string> = new Map([
  ["tables", named("table_schema", "table_name")],
  ["columns", `${named("table_schema", "table_name")} AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_class sh_c JOIN pg_catalog.pg_namespace sh_n ON sh_n.oid = sh_c.relnamespace WHERE sh_n.nspname = table_schema AND sh_c.relname = table_name AND (sh_c.oid::text || '.' || (SELECT attnum FROM pg_catalog.pg_attribute WHERE attrelid = sh_c.oid AND attname = column_name)) IN ${HIDDEN_COLUMNS})`],
  ["views", named("table_schema", "table_name")],
  ["schemata", `schema_name IN ('pg_catalog', 'information_schema', 'public') OR EXISTS (SELECT 1 FROM pg_catalog.pg_namespace ss_n WHERE ss_n.oid IN ${SEEN_SCHEMAS} AND ss_n.nspname = schema_name)`],
  ["table_constraints", named("table_schema", "table_name")],
  ["key_column_usage", named("table_schema", "table_name")],
  ["constraint_column_usage", named("table_schema", "table_name")],
  ["constraint_table_usage", named("table_schema", "table_name")],
  ["referential_constraints", "EXISTS (SELECT 1 FROM pg_catalog.pg_constraint sr_c WHERE sr_c.conname = constraint_name AND sr_c.conrelid IN " + SEEN + ")"],
  ["sequences", named("sequence_schema", "sequence_name")],
  ["table_privileges", named("table_schema", "table_name")],
  ["column_privileges", NOBODY],
  ["role_table_grants", NOBODY],
  ["routines", "specific_schema = 'pg_catalog'"],
  ["parameters", "specific_schema = 'pg_catalog'"],
  ["triggers", NOBODY],
  ["character_sets", ""],
  ["collations", ""],
  ["enabled_roles", NOBODY],
  ["applicable_roles", NOBODY],
  ["sql_features", ""],
  ["sql_sizing", ""],
  ["information_schema_catalog_name", ""],
]); // prettier-ignore

/** Functions that may stand in such a query: they read catalogs by oid or compute; none runs SQL, reads files or changes settings. */
export const CATALOG_FUNCTIONS: ReadonlySet<string> = new Set([
  "version", "pg_advisory_unlock_all", "current_database", "current_schema", "current_schemas", "current_user", "session_user", "pg_backend_pid",
  "pg_table_is_visible", "pg_type_is_visible", "pg_function_is_visible", "pg_operator_is_visible", "pg_opclass_is_visible",
  "pg_opfamily_is_visible", "pg_collation_is_visible", "pg_conversion_is_visible", "pg_ts_config_is_visible",
  "pg_ts_dict_is_visible", "pg_ts_parser_is_visible", "pg_ts_template_is_visible", "pg_statistics_obj_is_visible",
  "format_type", "pg_get_expr", "pg_get_indexdef", "pg_get_constraintdef", "pg_get_viewdef", "pg_get_ruledef",
  "pg_get_triggerdef", "pg_get_userbyid", "pg_get_serial_sequence", "pg_get_partkeydef", "pg_get_partition_constraintdef",
  "pg_get_statisticsobjdef", "pg_get_statisticsobjdef_columns", "pg_get_functiondef", "pg_get_function_arguments",
  "pg_get_function_identity_arguments", "pg_get_function_result", "pg_get_function_sqlbody", "pg_get_keywords",
  "pg_relation_is_publishable", "pg_relation_size", "pg_table_size", "pg_total_relation_size", "pg_indexes_size",
  "pg_size_pretty", "pg_database_size", "pg_tablespace_location", "pg_tablespace_size", "pg_encoding_to_char", "pg_char_to_encoding",
  "pg_client_encoding", "getdatabaseencoding", "pg_is_in_recovery", "pg_is_other_temp_schema", "pg_my_temp_schema", "pg_postmaster_start_time",
  "pg_partition_ancestors", "pg_partition_root", "pg_relation_filenode", "pg_column_is_updatable", "pg_relation_is_updatable",
  "pg_options_to_table", "pg_stat_get_numscans", "pg_stat_get_live_tuples", "pg_sequence_last_value", "pg_sequence_parameters",
  "pg_index_column_has_property", "pg_index_has_property", "pg_indexam_has_property", "pg_typeof",
  "obj_description", "col_description", "shobj_description", "has_table_privilege", "has_column_privilege",
  "has_any_column_privilege", "has_schema_privilege", "has_database_privilege", "has_function_privilege",
  "has_sequence_privilege", "has_type_privilege", "has_language_privilege", "has_tablespace_privilege", "pg_has_role",
  "to_regtype", "to_regnamespace", "aclexplode", "acldefault", "makeaclitem", "aclcontains",
  "_pg_expandarray", "_pg_char_max_length", "_pg_numeric_precision", "_pg_numeric_scale", "_pg_datetime_precision",
  "_pg_truetypid", "_pg_truetypmod", "_pg_index_position",
  "array_agg", "string_agg", "array_to_string", "string_to_array", "array_length", "array_upper", "array_lower", "array_position",
  "array_append", "array_cat", "array_remove", "cardinality", "unnest", "generate_series", "generate_subscripts", "array_dims",
  "array_ndims", "count", "sum", "min", "max", "avg", "bool_or", "bool_and", "every", "row_number", "rank", "dense_rank",
  "lower", "upper", "length", "char_length", "octet_length", "substring", "substr", "replace", "translate", "trim", "btrim", "ltrim", "rtrim",
  "lpad", "rpad", "left", "right", "split_part", "strpos", "position", "concat", "concat_ws", "quote_ident", "quote_literal", "quote_nullable",
  "format", "regexp_replace", "regexp_match", "regexp_matches", "regexp_split_to_table", "regexp_split_to_array", "starts_with", "reverse",
  "initcap", "md5", "ascii", "chr", "repeat", "encode", "decode", "like_escape",
  "coalesce", "nullif", "greatest", "least", "abs", "ceil", "floor", "round", "mod", "sign", "power", "int4", "int8", "oid", "text", "name",
  "json_agg", "jsonb_agg", "json_build_object", "jsonb_build_object", "json_object_agg", "jsonb_object_agg", "to_json", "to_jsonb",
  "row_to_json", "json_build_array", "jsonb_build_array", "array_to_json",
  "now", "date_part", "extract", "date_trunc", "current_setting", "to_char", "to_timestamp", "age", "timezone", "clock_timestamp", "txid_current",
  "inet_server_addr", "inet_server_port", "inet_client_addr", "inet_client_port",
]); // prettier-ignore
