interface Entry {
  readonly atMs: number;
  readonly order: number;
  readonly run: () => void;
}

/** Things to happen at true times, in order of time and then of scheduling (a binary heap). */
export class Timeline {
  nowMs = 0;
  #order = 0;
  readonly #heap: Entry[] = [];

  at(atMs: number, run: () => void): void {
    const heap = this.#heap;
    heap.push({ atMs: Math.max(atMs, this.nowMs), order: this.#order++, run });
    for (let child = heap.length - 1; child > 0;) {
      const parent = (child - 1) >> 1;
      if (!before(heap[child]!, heap[parent]!)) break;
      [heap[child], heap[parent]] = [heap[parent]!, heap[child]!];
      child = parent;
    }
  }

  /** Runs the next thing; false when nothing is left. */
  advance(): boolean {
    const heap = this.#heap;
    const first = heap[0];
    const last = heap.pop();
    if (!first || !last) return false;
    if (heap.length > 0) {
      heap[0] = last;
      for (let parent = 0; ;) {
        let least = parent;
        for (const child of [2 * parent + 1, 2 * parent + 2]) {
          if (child < heap.length && before(heap[child]!, heap[least]!)) least = child;
        }
        if (least === parent) break;
        [heap[parent], heap[least]] = [heap[least]!, heap[parent]!];
        parent = least;
      }
    }
    this.nowMs = first.atMs;
    first.run();
    return true;
  }
}

const before = (a: Entry, b: Entry): boolean => a.atMs < b.atMs || (a.atMs === b.atMs && a.order < b.order);
