import fs from 'node:fs';

/** Reads until `into` is full or the file ends; returns how many bytes there were. */
export function readFully(fd: number, into: Uint8Array, offset: number): number {
  let done = 0;
  while (done < into.length) {
    const got = fs.readSync(fd, into, done, into.length - done, offset + done);
    if (got === 0) break;
    done += got;
  }
  return done;
}
