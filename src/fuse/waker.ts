import fs from 'node:fs';

import { putRetrieve, RETRIEVE_BYTES } from './protocol.js';

/**
 * Wakes the mount thread, which blocks in a read of /dev/fuse and so hears no message. Any thread may
 * call `wake` after it posted something; the mount thread then drains its ports.
 *
 * How: FUSE_NOTIFY_RETRIEVE asks the kernel for cached data of a file, and the kernel answers with a
 * request (NOTIFY_REPLY), which ends the read. The kernel takes regular files only (not the root
 * folder: EINVAL on Linux 6.18) and only while it remembers them, so the mount has an empty file for
 * this that a small child process keeps open (waker-holder.ts).
 *
 * With the fuse-native driver nothing blocks: `wake` does nothing, and ports deliver by themselves.
 */
export const WAKE_NODE_ID = 2;

// Int32 indexes of the shared memory.
const FD = 0; // /dev/fuse + 1; 0 = the kernel cannot be asked (yet, or any more)
const PENDING = 1; // somebody woke, and the mount thread has not drained since
const USERS = 2; // threads that are writing to the descriptor now

export class Waker {
  readonly buffer: SharedArrayBuffer;
  readonly #shared: Int32Array;
  readonly #message = Buffer.alloc(RETRIEVE_BYTES);

  /** Takes the `buffer` of another thread's Waker, or makes a new one. */
  constructor(buffer: SharedArrayBuffer = new SharedArrayBuffer(16)) {
    this.buffer = buffer;
    this.#shared = new Int32Array(buffer);
    // Zero bytes are asked for: the answer is what counts.
    putRetrieve(this.#message, 0, WAKE_NODE_ID, 0);
  }

  /** Makes the mount thread drain its ports soon. Cheap when it was woken already. Never throws. */
  wake(): void {
    if (Atomics.exchange(this.#shared, PENDING, 1) === 1) return;
    // Counted first, then the descriptor is read: `close` waits for the count, so that this never
    // writes to a descriptor number that was closed and given to another file.
    Atomics.add(this.#shared, USERS, 1);
    const fd = Atomics.load(this.#shared, FD) - 1;
    if (fd >= 0) {
      try {
        fs.writeSync(fd, this.#message);
      } catch {
        // The mount is gone (ENODEV) or the file not known yet: the flag stays and is seen at the next request.
      }
    }
    Atomics.sub(this.#shared, USERS, 1);
  }

  /** Mount thread: the kernel knows the file now, so it can be asked from here on. */
  arm(fd: number): void {
    Atomics.store(this.#shared, FD, fd + 1);
  }

  /** Mount thread: whether somebody woke since the last call; then the ports must be drained. */
  taken(): boolean {
    return Atomics.load(this.#shared, PENDING) === 1 && Atomics.exchange(this.#shared, PENDING, 0) === 1;
  }

  /** Before the descriptor is closed: after this no thread uses it any more. */
  close(): void {
    Atomics.store(this.#shared, FD, 0);
    while (Atomics.load(this.#shared, USERS) > 0) {
      // A write of 48 bytes is under way in another thread: microseconds.
    }
  }
}
