// node --import=…/kill-at-step.mjs PROGRAM: kills the process with SIGKILL at a named step. A step is a call that changes a file
// or a bucket, before it (`:`) or after it (`.`): `link level 0:`, `PutObject level 9.`. Nothing of this is in the program itself.
//
// KILL_DIR/steps gets a line per step, `name<TAB>object`; the process whose program matches KILL_IN dies at the step that
// KILL_DIR/target names, which is removed first: each target kills once.
import fs from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';

const { KILL_DIR: dir = '', KILL_IN: program = '' } = process.env;
if (dir !== '' && new RegExp(program).test(process.argv[1] ?? '')) await arm();

async function arm() {
  const { appendFileSync, readFileSync, unlinkSync } = fs;
  const step = (name, object) => {
    appendFileSync(`${dir}/steps`, `${name}\t${object}\n`);
    let target;
    try {
      target = readFileSync(`${dir}/target`, 'utf8');
    } catch {
      return;
    }
    if (target !== name) return;
    unlinkSync(`${dir}/target`);
    process.kill(process.pid, 'SIGKILL');
    // The signal comes to the whole process; this thread does nothing more.
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
  };
  const around = (of, name, call) => {
    const what = whatOf(of);
    if (what === undefined) return call();
    step(`${name} ${what}:`, of);
    const value = call();
    const after = () => step(`${name} ${what}.`, of);
    if (typeof value?.then === 'function') value.then(after, () => undefined);
    else after();
    return value;
  };
  /** The last argument but one is what is changed, where two are given. */
  const wrap = (owner, name, pathOf) => {
    const real = owner[name];
    owner[name] = function (...args) {
      return around(pathOf(args, this), name.replace(/Sync$/, ''), () => real.apply(this, args));
    };
  };
  const first = ([path]) => path;
  const second = ([, path]) => path;
  const paths = new Map();
  for (const name of ['writeFile', 'rm', 'utimes']) wrap(fs.promises, name, first);
  for (const name of ['link', 'copyFile', 'rename']) wrap(fs.promises, name, second);
  const { open } = fs.promises;
  const handle = await open('/dev/null', 'r');
  const prototype = Object.getPrototypeOf(handle);
  await handle.close();
  fs.promises.open = async (path, ...rest) => {
    const opened = await open(path, ...rest);
    paths.set(opened.fd, String(path));
    return opened;
  };
  for (const name of ['sync', 'datasync', 'truncate']) wrap(prototype, name, (_, self) => paths.get(self.fd));
  const { openSync } = fs;
  fs.openSync = (path, ...rest) => {
    const fd = openSync(path, ...rest);
    paths.set(fd, String(path));
    return fd;
  };
  for (const name of ['writeSync', 'fsyncSync', 'fdatasyncSync', 'ftruncateSync'])
    wrap(fs, name, ([fd]) => paths.get(fd));
  for (const name of ['rmSync', 'unlinkSync']) wrap(fs, name, first);
  wrap(fs, 'renameSync', second);
  syncBuiltinESMExports();
  if (!/backup/.test(program)) return;
  const { S3Client } = await import('@aws-sdk/client-s3');
  const send = Reflect.get(S3Client.prototype, 'send');
  S3Client.prototype.send = function (command, ...rest) {
    const { Key, Delete } = command.input;
    const name = command.constructor.name.replace('Command', '');
    if (/^(Get|List|Head)/.test(name)) return send.call(this, command, ...rest);
    return around(Key ?? Delete?.Objects[0]?.Key ?? '', name, () => send.call(this, command, ...rest));
  };
}

/** What a path or a key is, without what is different in each run. */
function whatOf(path) {
  if (typeof path !== 'string') return undefined;
  const level = /\/(?:ltx\/(\d)|000(\d))(?:\/|$)/.exec(path);
  if (level && !path.includes('/dbs/')) return `level ${level[1] ?? level[2]}`;
  if (path.includes('.kitefs/head')) return 'head';
  if (/\/tmp\/backup-/.test(path)) return 'merged';
  if (/\/tmp\//.test(path) && /copy|snapshot/.test(path)) return 'copy';
  const restored = /\/out(\/|$)(?:app\.db)?(.*)$/.exec(path);
  return restored ? `output${restored[2]}` : undefined;
}
