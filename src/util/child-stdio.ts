import { openSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';

const O_CLOEXEC = 0o2000000;

let nullFd: number | undefined;

/**
 * Extends the `stdio` of a child so that it does not inherit `/dev/fuse`. libfuse opens it without
 * close-on-exec and Node cannot set that, so the slot of the descriptor is filled with /dev/null
 * instead. A child that kept it would keep the connection of a killed daemon alive: everybody who waits for
 * an answer would wait for ever, the child itself included (DESIGN §1.4).
 */
export function withoutFuse<T>(stdio: readonly T[]): (T | 'ignore' | number)[] {
  const inherited = new Set(readdirSync('/proc/self/fd').map(Number).filter(isInheritedFuse));
  const slots = Math.max(stdio.length, ...[...inherited].map((fd) => fd + 1));
  return Array.from({ length: slots }, (_, fd) => {
    // 'ignore' leaves a slot above 2 as it is: only another descriptor takes its place.
    if (inherited.has(fd)) return (nullFd ??= openSync('/dev/null', 'r'));
    return stdio[fd] ?? 'ignore';
  });
}

function isInheritedFuse(fd: number): boolean {
  try {
    if (readlinkSync(`/proc/self/fd/${fd}`) !== '/dev/fuse') return false;
    const flags = /^flags:\s+(\d+)/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))?.[1] ?? '0';
    return (Number.parseInt(flags, 8) & O_CLOEXEC) === 0;
  } catch {
    return false; // closed meanwhile: the descriptor of the listing itself, for one
  }
}
