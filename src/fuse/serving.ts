import type { MessagePort } from 'node:worker_threads';
import { receiveMessageOnPort } from 'node:worker_threads';

import { GateClient } from '../capture/gate-client.js';
import type { CaptureGate } from '../capture/gate.js';
import { waits } from '../durability/policy.js';
import { ControlBlock } from './control-block.js';
import { FileSystem } from './file-system.js';
import type { FromMountThread, ServingOptions, ToMountThread } from './mail.js';
import type { MountEvent } from './mount.js';
import type { RefusalReason } from './services.js';

/** One event for a name and reason in this time. */
const REFUSALS_EVERY_MS = 10_000;

/** The file system, and its mail with the main thread and with capture. */
export class Serving {
  readonly fileSystem: FileSystem;
  readonly #port: MessagePort;
  readonly #gate: GateClient | undefined;
  readonly #specials = new Map<number, (content: Buffer | undefined) => void>();
  readonly #refusals = new Map<string, { saidMs: number; count: number }>();
  readonly #stopped = new Set<string>();
  readonly #halted = new Set<string>();
  #nextId = 1;
  #ended = false;

  /** `events`: this thread has an event loop, so that mail comes by itself. */
  constructor(options: ServingOptions, port: MessagePort, events: boolean) {
    this.#port = port;
    const { captureEndpoint } = options;
    this.#gate = captureEndpoint ? new GateClient(captureEndpoint, { events }) : undefined;
    this.fileSystem = new FileSystem({
      ...options,
      control: new ControlBlock(options.control),
      stopped: this.#stopped,
      halted: this.#halted,
      gate: this.#gate ?? OPEN_GATE,
      waitsForReplicas: (name) => waits(options.durability, name),
      refused: (name, reason, message) => this.#refused(name, reason, message),
      created: (name) => this.#event({ type: 'created', name }),
      dropped: (name) => this.#event({ type: 'dropped', name }),
      deadCommit: (name) => this.#event({ type: 'deadCommit', name }),
      renamed: (name, newName) => this.#event({ type: 'renamed', name, newName }),
      walReused: (name, sizeBytes) => this.#event({ type: 'walReused', name, sizeBytes }),
      special: (path, answer) => {
        const id = this.#nextId++;
        this.#specials.set(id, answer);
        this.#post({ op: 'special', id, path });
      },
      wantTicks: () => this.#post({ op: 'ticks' }),
      error: (message) => this.error(message),
    });
    if (events) port.on('message', (mail: ToMountThread) => this.#take(mail));
  }

  ready(): void {
    this.#post({ op: 'ready' });
  }

  gone(): void {
    this.#event({ type: 'gone' });
  }

  error(message: string): void {
    this.#event({ type: 'error', message });
  }

  /** For a thread without event loop: handles what has arrived. Returns false when it is to stop. */
  drain(): boolean {
    for (let got = receiveMessageOnPort(this.#port); got; got = receiveMessageOnPort(this.#port)) {
      this.#take(got.message as ToMountThread);
    }
    this.#gate?.drain();
    return !this.#ended;
  }

  close(): void {
    this.#gate?.close();
    this.#port.close();
  }

  #take(mail: ToMountThread): void {
    if (mail.op === 'arm') {
      if (mail.pid > 0) this.fileSystem.setApplier(mail.pid);
      this.fileSystem.arm(mail.names);
      this.#post({ op: 'done', id: mail.id });
    } else if (mail.op === 'changed') {
      this.fileSystem.roleChanged();
      this.#post({ op: 'done', id: mail.id });
    } else if (mail.op === 'stopWrites') {
      this.#stopped.clear();
      for (const name of mail.names) this.#stopped.add(name);
      this.#post({ op: 'done', id: mail.id });
    } else if (mail.op === 'halted') {
      this.#halted.clear();
      for (const name of mail.names) this.#halted.add(name);
      this.#post({ op: 'done', id: mail.id });
    } else if (mail.op === 'special') {
      const answer = this.#specials.get(mail.id);
      this.#specials.delete(mail.id);
      answer?.(mail.content && Buffer.from(mail.content));
    } else if (mail.op === 'tick') {
      if (this.fileSystem.tick()) this.#post({ op: 'ticks' });
    } else {
      this.#ended = true;
    }
  }

  #refused(name: string, reason: RefusalReason, message: string): void {
    const key = `${reason} ${name}`;
    const known = this.#refusals.get(key) ?? { saidMs: -Infinity, count: 0 };
    known.count += 1;
    this.#refusals.set(key, known);
    const now = performance.now();
    if (now - known.saidMs < REFUSALS_EVERY_MS) return;
    this.#event({ type: 'refused', name, reason, message, count: known.count });
    known.saidMs = now;
    known.count = 0;
  }

  #event(event: MountEvent): void {
    this.#post({ op: 'event', event });
  }

  #post(mail: FromMountThread): void {
    this.#port.postMessage(mail);
  }
}

/** Without capture every change is allowed at once: a mount that replicates nothing. */
const OPEN_GATE: CaptureGate = {
  slotOf: () => 0,
  walCommitted: () => undefined,
  beforeWalChange: (_slot, _change, answer) => answer(0),
  beforeJournalCommit: (_slot, _commit, answer) => answer(0),
  awaitReplicas: (_slot, _endBytes, answer) => answer(0),
  adopt: (_slot, answer) => answer(0),
  beforeDrop: (_slot, answer) => answer(0),
  beforeRename: (_slot, _newName, answer) => answer(0),
  restoresCommitted: (_slot, _offset, _bytes, answer) => answer(5),
};
