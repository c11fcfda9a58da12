import fs from 'node:fs';
import { workerData } from 'node:worker_threads';

import { IoOp, IoQueue } from './io-queue.js';
import { MAX_WRITE_BYTES, OUT_HEADER_BYTES, putHeader } from './protocol.js';
import { Errno, errnoOf } from './services.js';

/** Entry of an I/O thread: see io-queue.ts. */
export interface IoThreadData {
  readonly fuseFd: number;
  readonly queue: SharedArrayBuffer;
}

const { fuseFd, queue: buffer } = workerData as IoThreadData;
const queue = new IoQueue(buffer);
const reply = Buffer.alloc(OUT_HEADER_BYTES + MAX_WRITE_BYTES);
/** Of the folders synced since the last answer. */
let folderErrno = 0;

function answer(unique: number, errno: number, bodyBytes: number): void {
  const length = putHeader(reply, unique, errno, bodyBytes);
  try {
    fs.writeSync(fuseFd, reply, 0, length);
  } catch {
    // ENOENT: the process was killed meanwhile; ENODEV: unmounted. Nobody waits for it any more.
  }
}

function attempt(work: () => void): number {
  try {
    work();
    return 0;
  } catch (error) {
    return errnoOf(error) ?? Errno.EIO;
  }
}

function syncAndClose(fd: number): void {
  folderErrno = attempt(() => fs.fsyncSync(fd)) || folderErrno;
  fs.closeSync(fd);
}

for (let job = queue.take(); job.op !== IoOp.stop; job = queue.take()) {
  const { fd, unique, offset, sizeBytes } = job;
  if (job.op === IoOp.read) {
    let read = 0;
    const errno = attempt(() => {
      read = fs.readSync(fd, reply, OUT_HEADER_BYTES, Math.min(sizeBytes, MAX_WRITE_BYTES), offset);
    });
    answer(unique, errno, errno === 0 ? read : 0);
  } else if (job.op === IoOp.sync) {
    answer(
      unique,
      attempt(() => fs.fsyncSync(fd)),
      0,
    );
  } else {
    syncAndClose(fd);
    if (job.op === IoOp.syncFolderLast) {
      answer(unique, folderErrno, 0);
      folderErrno = 0;
    }
  }
}
