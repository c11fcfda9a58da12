// `npm run docs`: writes the pages of docs/ that are made from the program (dist/), so that they cannot
// differ from it. With --check it writes nothing and fails when a page is not current.
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { SETTINGS } from '../../dist/config/schema.js';
import { CONFIG_FILES } from '../../dist/config/load.js';
import { ERRORS } from '../../dist/errors.js';
import { Metrics } from '../../dist/observability/metrics.js';

const DOCS = fileURLToPath(new URL('../../docs', import.meta.url));
const MADE = '<!-- Made by `npm run docs` from the program; changes here are lost. -->\n';

const cell = (text) => text.replaceAll('|', '\\|');
const row = (...cells) => `| ${cells.map(cell).join(' | ')} |\n`;
const table = (head, rows) =>
  row(...head) + row(...head.map(() => '---')) + rows.map((cells) => row(...cells)).join('');
const code = (text) => `\`${text}\``;

function configuration() {
  const used = SETTINGS.filter((setting) => setting.noEffect === undefined);
  const unused = SETTINGS.filter((setting) => setting.noEffect !== undefined);
  const fallback = (setting) =>
    setting.default === undefined
      ? (setting.derived ?? 'not set')
      : setting.default === ''
        ? 'empty'
        : code(setting.default);
  const environment = ({ env, alsoEnv }) => [env, ...alsoEnv].map(code).join(', ');
  return `${MADE}
# Configuration

Each value is taken from the first of these that has it: a flag (\`--lease.ttl 3s\`, one dash or two), the
environment (\`KITEFS_LEASE_TTL=3s\`), the file, the default. The file is the one named by \`-config\`, or the first that
exists of ${CONFIG_FILES.map(code).join(', ')}. A LiteFS file is read as it is. Names of the environment that do not
begin with \`KITEFS_\` are other programs' and are read when nothing else says the value.

In the file \`$NAME\` and \`\${NAME}\` are replaced by the environment before YAML is read, and \`\${ A == B }\` or
\`\${ A != 'text' }\` by true or false; \`-no-expand-env\` leaves it as it is. An unknown key is an error that names the file,
the line and the nearest key. \`kitefs config check\` looks without starting anything, \`kitefs config print\` shows every
value and where it comes from.

${table(
  ['key', 'what it does', 'value', 'default', 'environment'],
  used.map((setting) => [
    code(setting.key),
    setting.doc,
    setting.form,
    fallback(setting),
    environment(setting),
  ]),
)}
## \`exec\`

A command line for the shell, or a list; the commands of a list run one after the other, the last one is the
application:

\`\`\`yaml
exec:
  - cmd: "./migrate"
    if-candidate: true # only where this node may become primary
  - cmd: "./server --port 8080"
\`\`\`

A command that fails ends the node with its exit code. \`kitefs mount -- ./server --port 8080\` takes the place of \`exec\`.

## Read, and without effect

These are LiteFS's; setting them is no error, and one line in the log says that they do nothing.

${table(
  ['key', 'why'],
  unused.map((setting) => [code(setting.key), setting.noEffect]),
)}`;
}

function errors() {
  return `${MADE}
# Errors

Every error that a person or another node can meet has a code. The log, the command line and the HTTP answers name it.

${table(
  ['code', 'what to do', 'again later?', 'exit code', 'HTTP', 'gRPC'],
  Object.entries(ERRORS).map(([name, error]) => [
    code(name),
    error.action,
    error.retry ? 'yes' : 'no',
    String(error.exit),
    String(error.http),
    String(error.grpc),
  ]),
)}`;
}

function metrics() {
  const { registry } = new Metrics(() => {
    throw new Error('nothing is read');
  });
  const ours = registry.getMetricsAsArray().filter(({ name }) => name.startsWith('kitefs_'));
  return `${MADE}
# Metrics

\`GET /metrics\` at \`http.addr\`, for Prometheus; besides these there are the usual ones of a Node process.

${table(
  ['name', 'kind', 'labels', 'what it says'],
  ours.map((metric) => [
    code(metric.name),
    metric.type,
    (metric.labelNames ?? []).map(code).join(', '),
    metric.help,
  ]),
)}`;
}

const check = process.argv.includes('--check');
const pages = { 'configuration.md': configuration, 'errors.md': errors, 'metrics.md': metrics };
for (const [name, make] of Object.entries(pages)) {
  const path = join(DOCS, name);
  const made = make();
  if (!check) {
    writeFileSync(path, made);
    continue;
  }
  let current = '';
  try {
    current = readFileSync(path, 'utf8');
  } catch {
    // A page that is not there is not current either.
  }
  if (current !== made) {
    console.error(`docs/${name} is not current: run npm run build && npm run docs`);
    process.exitCode = 1;
  }
}
