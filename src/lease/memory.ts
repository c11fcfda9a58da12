import type { LeaseAdapter, LeaseRecord, Member, VersionedRecord } from './types.js';

/** A lease record and its members in this process's memory: for tests, and under the static lease. */
export class MemoryLeaseStore {
  #record: LeaseRecord | undefined;
  #version = 0;
  readonly #members = new Map<string, Member>();
  readonly #watchers = new Set<() => void>();

  constructor(record?: LeaseRecord) {
    this.#record = record;
  }

  get current(): VersionedRecord {
    return { record: this.#record, version: String(this.#version) };
  }

  get members(): readonly Member[] {
    return [...this.#members.values()];
  }

  /** Returns the new version, or undefined when `expected` is no longer current. */
  compareAndSet(expected: string, record: LeaseRecord | undefined): string | undefined {
    if (expected !== String(this.#version)) return undefined;
    this.#record = record;
    this.#version += 1;
    for (const wake of this.#watchers) wake();
    return String(this.#version);
  }

  register(member: Member): void {
    this.#members.set(member.nodeId, member);
  }

  unregister(nodeId: string): void {
    this.#members.delete(nodeId);
  }

  /** One node's access to this store. */
  connect(): LeaseAdapter {
    const waiting = new Set<() => void>();
    return {
      read: () => Promise.resolve(this.current),
      compareAndSet: (expected, record) => Promise.resolve(this.compareAndSet(expected, record)),
      watch: (version, waitMs) =>
        new Promise((resolve) => {
          const finish = (): void => {
            clearTimeout(timer);
            this.#watchers.delete(finish);
            waiting.delete(finish);
            resolve(this.current);
          };
          const timer = setTimeout(finish, waitMs);
          this.#watchers.add(finish);
          waiting.add(finish);
          if (version !== String(this.#version)) finish();
        }),
      register: (member) => Promise.resolve(this.register(member)),
      members: () => Promise.resolve(this.members),
      unregister: (nodeId) => Promise.resolve(this.unregister(nodeId)),
      close: () => {
        for (const finish of waiting) finish();
        return Promise.resolve();
      },
    };
  }
}
