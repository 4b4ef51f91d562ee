/**
 * The functions that clients may call: reviewed name by name from `duckdb_functions()` of the version in package.json, a
 * test holds the two against each other. A function is here when its result depends on its arguments alone (and on the
 * time, or chance): none that reads files, settings, sequences, other sessions or the catalog, none that runs text as SQL,
 * waits, writes the log, raises at will, or takes apart the engine's own formats.
 */
const words = (text: string): readonly string[] => text.split(/\s+/).filter((w) => w !== "");

const OPERATORS = words(`
  !__postfix !~~ !~~* % & && * ** + - ->> -> / // <-> << <=> <@ >> @ @> ^ ^@ | || ~ ~~ ~~* ~~~ ~* !~ !~*
  = <> != < > <= >= is_distinct_from between in not like ilike similar`);

const MATH = words(`
  abs acos acosh add asin asinh atan atan2 atanh bit_count cbrt ceil ceiling cos cosh cot degrees divide even exp factorial
  fdiv floor fmod gamma gcd greatest greatest_common_divisor isfinite isinf isnan lcm least least_common_multiple lgamma ln log
  log10 log2 mod multiply nextafter pi pow power radians random round round_even roundbankers sign signbit sin sinh sqrt
  subtract tan tanh trunc xor nullif`);

const TEXT = words(`
  ascii array_to_string bar base64 bin bit_length bit_position bitstring char_length character_length chr concat concat_ws
  contains damerau_levenshtein decode editdist3 encode ends_with format formatreadabledecimalsize formatreadablesize format_bytes
  from_base64 from_binary from_hex get_bit hamming hash hex ilike_escape instr jaccard jaro_similarity jaro_winkler_similarity lcase
  left left_grapheme len length length_grapheme levenshtein like_escape lower lpad ltrim md5 md5_number md5_number_lower
  md5_number_upper mismatches nfc_normalize not_ilike_escape not_like_escape octet_length ord parse_dirname parse_dirpath
  parse_filename parse_formatted_bytes parse_path pg_size_pretty position prefix printf regexp_escape regexp_extract
  regexp_extract_all regexp_full_match regexp_matches regexp_replace regexp_split_to_array regexp_split_to_table repeat replace
  reverse right right_grapheme rpad rtrim set_bit sha1 sha256 split split_part starts_with str_split str_split_regex string_split
  string_split_regex string_to_array strip_accents strlen strpos substr substring substring_grapheme suffix to_base to_base64
  to_binary to_hex translate trim ucase unbin unhex unicode upper url_decode url_encode btrim overlay initcap`);

const TIME = words(`
  age ago century current_date current_localtime current_localtimestamp current_time current_timestamp date_add date_diff
  date_part date_sub date_trunc datediff datepart datesub datetrunc day dayname dayofmonth dayofweek dayofyear days_in_month
  decade epoch epoch_ms epoch_ns epoch_us era get_current_time get_current_timestamp hour isodow isoyear julian last_day
  localtime localtimestamp make_date make_time make_timestamp make_timestamp_ms make_timestamp_ns make_timestamptz microsecond
  millennium millisecond minute month monthname nanosecond normalized_interval now quarter second strftime strptime time_bucket
  timezone timezone_hour timezone_minute to_centuries to_days to_decades to_hours to_microseconds to_millennia to_milliseconds
  to_minutes to_months to_quarters to_seconds to_timestamp to_weeks to_years today transaction_timestamp try_strptime week
  weekday weekofyear year yearweek make_interval statement_timestamp clock_timestamp to_char`);

const NESTED = words(`
  aggregate apply array_aggr array_aggregate array_append array_apply array_cat array_concat array_contains
  array_cosine_distance array_cosine_similarity array_cross_product array_distance array_distinct array_dot_product array_extract
  array_filter array_grade_up array_has array_has_all array_has_any array_indexof array_inner_product array_intersect
  array_length array_negative_dot_product array_negative_inner_product array_pop_back array_pop_front array_position
  array_prepend array_push_back array_push_front array_reduce array_resize array_reverse array_reverse_sort array_select
  array_slice array_sort array_to_string_comma_default array_transform array_unique array_value array_where array_zip cardinality
  element_at enum_code enum_first enum_last enum_range enum_range_boundary equi_width_bins filter flatten generate_series
  generate_subscripts grade_up list_aggr list_aggregate list_any_value list_append list_apply list_approx_count_distinct list_avg
  list_bit_and list_bit_or list_bit_xor list_bool_and list_bool_or list_cat list_concat list_contains list_cosine_distance
  list_cosine_similarity list_count list_distance list_distinct list_dot_product list_element list_entropy list_extract
  list_filter list_first list_grade_up list_has list_has_all list_has_any list_histogram list_indexof list_inner_product
  list_intersect list_kurtosis list_kurtosis_pop list_last list_mad list_max list_median list_min list_mode
  list_negative_dot_product list_negative_inner_product list_pack list_position list_prepend list_product list_reduce list_resize
  list_reverse list_reverse_sort list_select list_sem list_skewness list_slice list_sort list_stddev_pop list_stddev_samp
  list_string_agg list_sum list_transform list_unique list_value list_var_pop list_var_samp list_where list_zip map map_concat
  map_contains map_contains_entry map_contains_value map_entries map_extract map_extract_value map_from_entries map_keys
  map_values range reduce row struct_concat struct_contains struct_extract struct_extract_at struct_has struct_indexof
  struct_insert struct_keys struct_pack struct_position struct_update struct_values union_extract union_tag union_value unnest
  unpivot_list array_remove array_replace array_upper array_lower array_ndims`);

const JSON_FUNCTIONS = words(`
  array_to_json from_json from_json_strict json json_array json_array_length json_contains json_exists json_extract
  json_extract_path json_extract_path_text json_extract_string json_group_array json_group_object json_group_structure json_keys
  json_merge_patch json_object json_pretty json_quote json_structure json_transform json_transform_strict json_type json_valid
  json_value row_to_json to_json variant_extract variant_typeof jsonb_build_object jsonb_build_array json_build_object
  json_build_array to_jsonb jsonb_array_length jsonb_typeof json_typeof json_strip_nulls jsonb_set json_agg jsonb_agg
  json_object_agg jsonb_object_agg`);

const OTHER = words(`
  alias coalesce gen_random_uuid get_type pg_typeof typeof uuid uuid_extract_timestamp uuid_extract_version
  uuidv4 uuidv7 grouping grouping_id`);

export const AGGREGATES = words(`
  any_value approx_count_distinct approx_quantile approx_top_k arbitrary arg_max arg_max_null arg_max_nulls_last arg_min
  arg_min_null arg_min_nulls_last argmax argmin array_agg avg bit_and bit_or bit_xor bitstring_agg bool_and bool_or corr count
  count_if count_star countif covar_pop covar_samp cume_dist dense_rank entropy every favg fill first first_value fsum geomean
  geometric_mean group_concat histogram histogram_exact kahan_sum kurtosis kurtosis_pop lag last last_value lead list listagg mad
  max max_by mean median min min_by mode nth_value ntile percent_rank percentile_cont percentile_disc product quantile
  quantile_cont quantile_disc rank rank_dense regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope regr_sxx regr_sxy
  regr_syy reservoir_quantile row_number sem skewness stddev stddev_pop stddev_samp string_agg sum sum_no_overflow sumkahan var_pop
  var_samp variance wavg weighted_avg`);

/** Their results are put in as constants: of the session, never of the node. */
export const SESSION_FUNCTIONS: ReadonlySet<string> = new Set([
  "current_user",
  "session_user",
  "user",
  "current_role",
  "current_schema",
  "current_catalog",
  "current_database",
  "version",
]);

export const FUNCTIONS: ReadonlySet<string> = new Set([
  ...OPERATORS,
  ...MATH,
  ...TEXT,
  ...TIME,
  ...NESTED,
  ...JSON_FUNCTIONS,
  ...OTHER,
  ...AGGREGATES,
]);

/** In FROM. */
export const TABLE_FUNCTIONS: ReadonlySet<string> = new Set(["generate_series", "range", "unnest"]);

/**
 * Functions whose result is as large as an argument says, with the number of that argument: it must be a constant up to
 * the limit, for the engine's memory limit does not see what one value takes.
 */
export const SIZED: ReadonlyMap<string, number> = new Map([
  ["repeat", 1],
  ["lpad", 1],
  ["rpad", 1],
  ["list_resize", 1],
  ["array_resize", 1],
]);
export const MAX_SIZE = 10_000_000;

/** Types that values may be cast to, by DuckDB's names and Postgres's. */
export const TYPES: ReadonlySet<string> = new Set(
  words(`
  boolean bool tinyint smallint integer int bigint hugeint utinyint usmallint uinteger ubigint uhugeint int1 int2 int4 int8 short
  long int16 int32 int64 int128 float real float4 double float8 decimal numeric dec varchar text string char bpchar blob bytea binary
  varbinary bit bitstring varbit date time timetz timestamp timestamptz timestamp_s timestamp_ms timestamp_ns timestamp_us datetime interval
  uuid guid json jsonb list array struct row map union enum null name oid variant bignum varint
  time_tz timestamp_tz time_ns integer_literal string_literal sqlnull any`),
);

/** Settings that clients may show and set: what they mean is the session's affair, never the node's. */
export const SETTABLE: ReadonlySet<string> = new Set([
  "application_name",
  "bytea_output",
  "client_encoding",
  "client_min_messages",
  "datestyle",
  "default_transaction_deferrable",
  "default_transaction_isolation",
  "default_transaction_read_only",
  "extra_float_digits",
  "idle_in_transaction_session_timeout",
  "idle_session_timeout",
  "intervalstyle",
  "jit",
  "lock_timeout",
  "row_security",
  "schema",
  "search_path",
  "standard_conforming_strings",
  "statement_timeout",
  "synchronize_seqscans",
  "timezone",
  "transaction_deferrable",
  "transaction_isolation",
  "transaction_read_only",
  "transaction_timeout",
  "xmloption",
]);
/** These besides, to be shown only. */
export const SHOWABLE: ReadonlySet<string> = new Set([
  ...SETTABLE,
  "all",
  "in_hot_standby",
  "integer_datetimes",
  "is_superuser",
  "lc_collate",
  "lc_ctype",
  "max_identifier_length",
  "max_index_keys",
  "server_encoding",
  "server_version",
  "server_version_num",
  "session_authorization",
]);
