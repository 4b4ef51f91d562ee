#!/usr/bin/env node
// DuckDB holds one libuv thread for each running query, and the pool's size is fixed at its first use:
// so it is set here, before any module is loaded asynchronously.
process.env.UV_THREADPOOL_SIZE ??= "24";
import("../dist/main.js");
