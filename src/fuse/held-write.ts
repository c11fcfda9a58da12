import { Errno, type Answer } from './services.js';

/**
 * The write that completes a WAL commit, performed but not answered until replicas have the commit (DESIGN §7). Held for
 * longer than a moment it is answered with EINTR, because the kernel keeps the inode's lock until it is answered
 * (trap 12): SQLite then makes the same write again, unseen by the application, and that one is held in its place.
 */
export class HeldWrite {
  readonly #offset: number;
  readonly #bytes: Buffer;
  /** Asks whether replicas have it; EINTR: not yet. */
  readonly #ask: (answer: Answer) => void;
  #answer: Answer | undefined;
  #asking = false;
  #outcome: number | undefined;

  constructor(offset: number, bytes: Buffer, ask: (answer: Answer) => void) {
    this.#offset = offset;
    this.#bytes = bytes;
    this.#ask = ask;
  }

  /** Whether a write is this one, made again. Another writer's transaction begins with a frame header elsewhere. */
  isRepeatedBy(offset: number, data: Buffer): boolean {
    return offset === this.#offset && this.#bytes.equals(data);
  }

  /** Answers now, when replicas have it, or with EINTR in a while. */
  hold(answer: Answer): void {
    if (this.#outcome !== undefined) return answer(this.#outcome);
    this.#answer = answer;
    if (this.#asking) return;
    this.#asking = true;
    this.#ask((errno) => {
      this.#asking = false;
      if (errno !== Errno.EINTR) this.#outcome = errno;
      const waiting = this.#answer;
      this.#answer = undefined;
      waiting?.(errno);
    });
  }
}
