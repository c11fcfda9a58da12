// `npm start`: install, build, and run the demo: two nodes on this machine, mounted under ./run.
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { ROOT, build, installForRunning } from './install.mjs';

try {
  installForRunning();
  build();
} catch (error) {
  console.error(`kitefs: ${error.message}`);
  process.exit(1);
}

const args = process.argv.length > 2 ? process.argv.slice(2) : ['--dir', './run', '--nodes', '2'];
const demo = spawn(process.execPath, [join(ROOT, 'dist/cli/main.js'), 'demo', ...args], {
  cwd: ROOT,
  stdio: 'inherit',
});
// The demo handles the signals itself (a terminal sends them to both of us); we only wait for its end.
for (const signal of ['SIGINT', 'SIGTERM']) {
  process.on(signal, () => {
    if (signal === 'SIGTERM') demo.kill(signal);
  });
}
demo.on('exit', (code, signal) => process.exit(code ?? (signal ? 1 : 0)));
