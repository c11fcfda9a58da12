// Runs commands as the daemon does, with its guard: node supervise.fixture.mjs '<json>'. Prints one JSON
// line per thing that happens. Its test kills it to see what the guard does.
import { Guard } from '../../dist/daemon/guard.js';
import { Supervisor } from '../../dist/daemon/supervisor.js';
import { createLogger } from '../../dist/observability/log.js';

const { commands, candidate = true, graceMs = 10_000 } = JSON.parse(process.argv[2]);
const say = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);

const guard = Guard.start();
const supervisor = new Supervisor({
  candidate,
  logger: createLogger({ format: 'json', level: 'silent' }),
  onGroup(group) {
    guard.supervise(group);
    say({ group: group ?? null });
  },
});
process.on('SIGTERM', () => void supervisor.stop(graceMs));
process.on('SIGUSR2', () => supervisor.signal('SIGUSR2'));
say({ guard: guard.pid });
const code = await supervisor.run(commands);
await guard.goodbye();
say({ code: code ?? null });
