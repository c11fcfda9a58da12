/** What retention needs of a database's log. */
export interface RetainedLog {
  databases(): readonly string[];
  position(name: string): { readonly txid: bigint } | undefined;
  removeBefore(name: string, txid: bigint): Promise<void>;
  /** Removes the oldest files until the log is this small, also those that a replica still has to get. */
  trimTo(name: string, maxBytes: number): Promise<void>;
}

/**
 * Removes log files that are older than the retention, and older ones still while a log is too large. How old a transaction is is known by looking: at each
 * interval the end of each log is noted with the monotonic time, so no file's time stamp (and no clock of
 * another machine) is believed. A node that has just started keeps everything for one retention.
 */
export class Retention {
  readonly #log: RetainedLog;
  readonly #retentionMs: number;
  readonly #maxBytes: number;
  readonly #seen = new Map<string, { readonly atMs: number; readonly txid: bigint }[]>();

  /** `maxBytes`: of the log of each database. */
  constructor(log: RetainedLog, retentionMs: number, maxBytes: number) {
    this.#log = log;
    this.#retentionMs = retentionMs;
    this.#maxBytes = maxBytes;
  }

  /** One look at all logs. */
  async run(nowMs: number): Promise<void> {
    for (const name of this.#log.databases()) {
      const txid = this.#log.position(name)?.txid;
      if (txid === undefined) continue;
      const seen = this.#seen.get(name) ?? [];
      this.#seen.set(name, seen);
      seen.push({ atMs: nowMs, txid });
      // What was the log's end one retention ago is older than that by now.
      let oldEnd: bigint | undefined;
      while (seen[0] && seen[0].atMs <= nowMs - this.#retentionMs) oldEnd = seen.shift()?.txid;
      if (oldEnd !== undefined) await this.#log.removeBefore(name, oldEnd);
      await this.#log.trimTo(name, this.#maxBytes);
    }
  }
}
