import type { EpochPosition, LogFile } from '../store/types.js';
import type { ApplierContext } from './context.js';
import { exportDatabase, importDatabase, removeDatabase } from './copies.js';
import { HaltWriters } from './halt-writers.js';
import { HandOffLocks } from './hand-off-locks.js';
import { makeJournalMode, recoverDatabase } from './journal-mode.js';
import type { AppliedDatabase, ApplierCall } from './messages.js';
import { ReplicaDatabase } from './replica-database.js';
import { readWal } from './read-wal.js';

/** What the applier process does, call by call. Calls of one database wait for one another, others do not. */
export class ApplierServer {
  readonly #context: ApplierContext;
  readonly #open = new Map<string, ReplicaDatabase>();
  readonly #locks: HandOffLocks;
  readonly #halts: HaltWriters;
  /** Per database, the end of the calls that may not overlap. */
  readonly #turns = new Map<string, Promise<unknown>>();

  constructor(context: ApplierContext) {
    this.#context = context;
    this.#locks = new HandOffLocks(context);
    this.#halts = new HaltWriters(context);
  }

  async call(call: ApplierCall): Promise<unknown> {
    const context = this.#context;
    switch (call.op) {
      case 'open':
        return await this.#place(call.args.name);
      case 'apply':
        return await this.#apply(call.args.name, call.args.files);
      case 'checksums': {
        const { name, firstPgno, count } = call.args;
        return await (await this.#opened(name)).checksums(firstPgno, count);
      }
      case 'keep':
        return await (await this.#opened(call.args.name)).keep(call.args.path);
      case 'close':
        return await this.#close(call.args.name);
      case 'closeLetGo':
        return await this.#closeLetGo([...this.#open.keys()]);
      case 'closeAll':
        this.#locks.release();
        for (const name of this.#halts.names) this.#unhalt(name);
        await Promise.all([...this.#open.keys()].map((name) => this.#close(name)));
        return undefined;
      case 'letGoAll':
        await Promise.all([...this.#open.entries()].map(([name, database]) => this.#letGo(name, database)));
        return undefined;
      case 'settleAll':
        await Promise.all([...this.#open.values()].map((database) => database.settle()));
        return undefined;
      case 'recover':
        return await this.#inTurn(call.args.name, () => recoverDatabase(context, call.args.name));
      case 'makeJournalMode':
        return await this.#inTurn(call.args.name, () =>
          makeJournalMode(context, call.args.name, call.args.mode),
        );
      case 'lock':
        await this.#closeLetGo(call.args.names);
        return await this.#locks.take(call.args.names, call.args.timeoutMs);
      case 'unlock':
        return this.#locks.release();
      case 'halt':
        await this.#closeLetGo([call.args.name]);
        // In turn: see `#unhalt`.
        return await this.#inTurn(call.args.name, () =>
          this.#halts.take(call.args.name, call.args.timeoutMs),
        );
      case 'haltWrite':
        return await this.#halts.write(call.args.name, call.args.path);
      case 'unhalt':
        return this.#unhalt(call.args.name);
      case 'export':
        return await this.#export(call.args.name, call.args.path);
      case 'import':
        await this.#closeLetGo([call.args.name]);
        return await this.#inTurn(call.args.name, () =>
          importDatabase(context, call.args.name, call.args.path),
        );
      case 'drop':
        return await this.#drop(call.args.name);
      case 'remove':
        return await this.#inTurn(call.args.name, async () => removeDatabase(context, call.args.name));
      case 'readWal':
        return await readWal(context, call.args.name, call.args.sizeBytes);
      default:
        throw new Error(`no such call: ${JSON.stringify(call satisfies never)}`);
    }
  }

  /** Opens it when it is not. The first of two calls at once opens. */
  async #opened(name: string): Promise<ReplicaDatabase> {
    const serving = this.#open.get(name);
    // Not in turn: an export does not hold up what is applied.
    if (serving?.ready) return serving;
    return await this.#inTurn(name, async () => {
      const known = this.#open.get(name);
      if (known?.ready) return known;
      await known?.close();
      const database = new ReplicaDatabase(this.#context, name);
      this.#open.set(name, database);
      try {
        await database.open();
      } catch (error) {
        this.#open.delete(name);
        throw error;
      }
      return database;
    });
  }

  /** The lock goes at once; our descriptors go in turn, because a copy that is being made would lose its locks with them. */
  #unhalt(name: string): void {
    const files = this.#halts.release(name);
    if (files) void this.#inTurn(name, async () => files.close());
  }

  async #place(name: string): Promise<AppliedDatabase> {
    const serving = this.#open.get(name);
    if (serving?.ready && !serving.place()) await this.#close(name);
    return (await this.#opened(name)).applied;
  }

  #export(name: string, path: string): Promise<void> {
    // In turn: closing our own descriptors of the database meanwhile would give up the copy's locks.
    return this.#inTurn(name, () =>
      exportDatabase(this.#context, name, path, this.#open.get(name)?.journalVersions),
    );
  }

  async #apply(name: string, files: readonly LogFile[]): Promise<AppliedDatabase> {
    const database = await this.#opened(name);
    return await database.apply(files);
  }

  #close(name: string): Promise<EpochPosition | undefined> {
    // Not behind a call that waits for a lock: closing is what ends such a wait.
    const database = this.#open.get(name);
    database?.stop();
    return this.#inTurn(name, async () => {
      const still = this.#open.get(name);
      this.#open.delete(name);
      return await still?.close();
    });
  }

  #letGo(name: string, database: ReplicaDatabase): Promise<unknown> {
    database.stop();
    return this.#inTurn(name, () => database.letGo());
  }

  /** Not while one of these calls has locks, which the end of our descriptors would give up. */
  async #closeLetGo(names: readonly string[]): Promise<void> {
    const letGo = names.filter((name) => this.#open.get(name)?.isLetGo === true);
    await Promise.all(letGo.map((name) => this.#close(name)));
  }

  async #drop(name: string): Promise<void> {
    const database = await this.#opened(name);
    await this.#inTurn(name, async () => {
      this.#open.delete(name);
      await database.drop();
    });
  }

  async #inTurn<T>(name: string, work: () => Promise<T>): Promise<T> {
    const before = this.#turns.get(name) ?? Promise.resolve();
    const turn = before.catch(() => {}).then(work);
    this.#turns.set(name, turn);
    try {
      return await turn;
    } finally {
      if (this.#turns.get(name) === turn) this.#turns.delete(name);
    }
  }
}
