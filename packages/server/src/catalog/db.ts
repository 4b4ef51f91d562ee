/** What the queries of the catalog need of a connection: node-postgres clients and the pool's have it. */
export interface Db {
  query<R extends object = Record<string, unknown>>(
    text: string,
    values?: unknown[],
  ): Promise<{ rows: R[]; rowCount: number | null }>;
}
