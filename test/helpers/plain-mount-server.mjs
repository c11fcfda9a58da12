// A mount that captures nothing, in a process of its own: node plain-mount-server.mjs <dist> <options as JSON>.
// Lines on stdin: {"state": 0|1|2, "lease"?: false}, {"applier": pid}, {"stop": true}; answers and events on stdout.
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

const [dist, json] = process.argv.slice(2);
const { Mount } = await import(pathToFileURL(`${dist}/fuse/mount.js`).href);
const { ControlBlock } = await import(pathToFileURL(`${dist}/fuse/control-block.js`).href);

const control = new ControlBlock();
const { state, ...options } = JSON.parse(json);
const say = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);

function take(role) {
  control.state = role.state;
  control.deadlineNs = role.lease === false ? 0n : 2n ** 62n;
}

take({ state });
const mount = await Mount.start({
  otherFiles: 'refuse',
  allowOther: true,
  candidate: true,
  ...options,
  control: control.buffer,
  special: async (path) => (path === '.primary' ? undefined : Buffer.from(`content of ${path}\n`)),
  onEvent: (event) => say({ event }),
});
say({ ready: true });

const stop = async () => {
  await mount.stop();
  process.exit(0);
};
async function obey(command) {
  if (command.stop) {
    await stop();
  } else if (command.applier !== undefined || command.names) {
    await mount.armApplier({ pid: command.applier, names: command.names });
  } else {
    take(command);
    await mount.changed();
  }
  say({ done: true });
}

const lines = createInterface({ input: process.stdin });
lines.on('line', (line) => void obey(JSON.parse(line)));
lines.on('close', () => void stop());
