import { receiveMessageOnPort, type MessagePort } from 'node:worker_threads';

import { KiteError } from '../errors.js';
import { ChangeMark } from '../util/change-mark.js';
import { CommitSignal } from './commit-signal.js';
import type { CaptureGate, DatabaseSlot, GateAnswer, JournalCommit } from './gate.js';
import type { GateReply, GateRequest, WalChange } from './messages.js';

/** What the mount's thread needs to reach capture; the port must be in the transfer list. */
export interface GateEndpoint {
  readonly port: MessagePort;
  readonly signal: SharedArrayBuffer;
  /** The ChangeMark of what readers see; absent: nobody looks at it. */
  readonly mark?: SharedArrayBuffer | undefined;
}

type Asked = GateRequest extends infer R ? (R extends { id: number } ? Omit<R, 'id'> : never) : never;

/**
 * The mount's side of the gate. On a thread that blocks in reads, call `drain` after each wake; on a
 * thread with an event loop, construct it with `events: true` and answers arrive by themselves.
 */
export class GateClient implements CaptureGate {
  readonly #port: MessagePort;
  readonly #signal: CommitSignal;
  readonly #mark: ChangeMark | undefined;
  readonly #slots = new Map<string, DatabaseSlot>();
  readonly #names = new Map<DatabaseSlot, string>();
  readonly #answers = new Map<number, GateAnswer>();
  #nextId = 1;

  constructor(endpoint: GateEndpoint, options: { events?: boolean } = {}) {
    this.#port = endpoint.port;
    this.#signal = new CommitSignal(endpoint.signal);
    this.#mark = endpoint.mark && new ChangeMark(endpoint.mark);
    if (options.events === true) this.#port.on('message', (reply: GateReply) => this.#take(reply));
  }

  slotOf(name: string): DatabaseSlot {
    const known = this.#slots.get(name);
    if (known !== undefined) return known;
    const slot = this.#signal.newSlot();
    if (slot < 0) {
      throw new KiteError('ERR_CAPTURE_SLOTS', `no number is left for database ${name}`);
    }
    this.#slots.set(name, slot);
    this.#names.set(slot, name);
    this.#post({ op: 'slot', slot, name });
    return slot;
  }

  walCommitted(slot: DatabaseSlot, endBytes: number): void {
    this.#signal.publish(slot, endBytes);
    // Before the writer is answered, and so before anybody can see the commit; after capture can: whoever asks now, asks for it too.
    this.#mark?.touch();
  }

  beforeWalChange(slot: DatabaseSlot, change: WalChange, answer: GateAnswer): void {
    const cuts = change.kind === 'overwrite' || change.kind === 'truncate';
    const fromBytes = cuts ? change.fromBytes : 0;
    // Taken back first: what is destroyed must not be read once more between the answer and the destruction.
    const { unread, publishedEnd } = this.#signal.retract(slot, fromBytes);
    // SQLite writes each frame header of a spilled transaction again: no question to capture for each.
    if (unread && fromBytes > 0) return answer(0);
    this.#ask({ op: 'wal', slot, change, publishedEnd }, answer);
  }

  beforeJournalCommit(slot: DatabaseSlot, commit: JournalCommit, answer: GateAnswer): void {
    this.#ask({ op: 'journal', slot, commit }, answer);
  }

  awaitReplicas(slot: DatabaseSlot, endBytes: number, answer: GateAnswer): void {
    this.#ask({ op: 'replicas', slot, endBytes }, answer);
  }

  adopt(slot: DatabaseSlot, answer: GateAnswer): void {
    this.#ask({ op: 'adopt', slot }, answer);
  }

  beforeDrop(slot: DatabaseSlot, answer: GateAnswer): void {
    this.#forget(slot);
    this.#ask({ op: 'drop', slot }, answer);
  }

  beforeRename(slot: DatabaseSlot, newName: string, answer: GateAnswer): void {
    this.#forget(slot);
    this.#ask({ op: 'rename', slot, newName }, answer);
  }

  restoresCommitted(slot: DatabaseSlot, offsetBytes: number, bytes: Uint8Array, answer: GateAnswer): void {
    this.#ask({ op: 'restores', slot, offsetBytes, bytes }, answer);
  }

  /** Runs the callbacks of all answers that have arrived. */
  drain(): void {
    for (let got = receiveMessageOnPort(this.#port); got; got = receiveMessageOnPort(this.#port)) {
      this.#take(got.message as GateReply);
    }
  }

  /** Questions that are not answered yet. */
  get pending(): number {
    return this.#answers.size;
  }

  close(): void {
    this.#port.close();
  }

  /** A dropped or renamed database's slot is dead: the name gets a new one when it is seen again. */
  #forget(slot: DatabaseSlot): void {
    const name = this.#names.get(slot);
    this.#names.delete(slot);
    if (name !== undefined) this.#slots.delete(name);
  }

  #ask(request: Asked, answer: GateAnswer): void {
    const id = this.#nextId++;
    this.#answers.set(id, answer);
    this.#post({ ...request, id });
  }

  #post(request: GateRequest): void {
    this.#port.postMessage(request);
  }

  #take(reply: GateReply): void {
    const answer = this.#answers.get(reply.id);
    this.#answers.delete(reply.id);
    // What capture has read now may be visible as soon as the mount goes on.
    if (answer) this.#mark?.touch();
    answer?.(reply.errno);
  }
}
