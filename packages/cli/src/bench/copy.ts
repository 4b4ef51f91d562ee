/**
 * `bench copy`: a table's first copy, rows a second, against `COPY TO STDOUT` thrown away in the same run, in the faster of its two formats.
 */
import { connectRaw } from "@spillway/pg/wire/connect-raw";
import { copyOutRaw } from "./copy-raw.ts";
import { atLeast, type Bench, median, report } from "./report.ts";
import { Scratch } from "./scratch.ts";

const COPY_RATIO = 0.5;

export const run: Bench = async (options) => {
  const rows = options.option("rows", options.quick ? 500_000 : 5_000_000);
  const runs = options.option("runs", options.quick ? 1 : 3);
  const scratch = await Scratch.open({ postgres: { wal_level: "logical", max_wal_size: "8GB" } });
  try {
    await scratch.client.query(
      "create table src (id bigint primary key, account int not null, amount numeric(12,2), at timestamptz not null, note text)",
    );
    await scratch.client.query(
      `insert into src select g, g % 1000, g / 7.0, '2024-01-01'::timestamptz + g * interval '1 second', 'note ' || md5(g::text)
       from generate_series(1, $1::int) g`,
      [rows],
    );
    await scratch.client.query("vacuum analyze src");
    const text: number[] = [];
    const binary: number[] = [];
    const copies: number[] = [];
    for (let i = 1; i <= runs; i++) {
      options.signal.throwIfAborted();
      const connection = await connectRaw(scratch.url, {});
      text.push(await copyOutRaw(connection, "src", "text"));
      binary.push(await copyOutRaw(connection, "src", "binary"));
      await connection.close();
      const startMs = performance.now();
      await scratch.run(["register", "--mode", "mirrored", "--table", "src"]);
      copies.push((performance.now() - startMs) / 1000);
      options.say(
        `run ${i}: copy ${Math.round(rows / (copies.at(-1) ?? 1))} rows/s, text ${Math.round(rows / (text.at(-1) ?? 1))}, binary ${Math.round(rows / (binary.at(-1) ?? 1))}`,
      );
      await scratch.run(["unregister", "--table", "src", "--drop-lake"]);
    }
    const ceiling = Math.min(median(text), median(binary));
    return report(
      "copy",
      { copy_ratio: atLeast(ceiling / median(copies), COPY_RATIO) },
      {
        rows,
        runs,
        copy_rows_per_s: Math.round(rows / median(copies)),
        text_rows_per_s: Math.round(rows / median(text)),
        binary_rows_per_s: Math.round(rows / median(binary)),
      },
    );
  } finally {
    await scratch.close();
  }
};
