// `npm test`: installs what is missing, builds, runs every check and every test against the real parts,
// and ends with one line `N passed, N failed` over all of them. A part that fails does not stop the next.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { ROOT, build, installForTests } from './install.mjs';

const RESULTS = join(ROOT, '.cache', 'test-results');
const startedMs = Date.now();
const failed = [];
let passedCount = 0;
let failedCount = 0;

const seconds = (sinceMs) => `${((Date.now() - sinceMs) / 1000).toFixed(0)} s`;

/** One check that passes or fails as a whole. */
function check(name, command, ...args) {
  const sinceMs = Date.now();
  const ran = spawnSync(command, args, { cwd: ROOT, stdio: 'pipe', encoding: 'utf8' });
  if (ran.status === 0) {
    passedCount += 1;
    console.log(`ok      ${name} (${seconds(sinceMs)})`);
    return true;
  }
  failedCount += 1;
  failed.push(name);
  console.log(`FAILED  ${name} (${seconds(sinceMs)})\n${ran.stdout}${ran.stderr}`);
  return false;
}

/** One vitest project; each of its tests counts. */
function vitest(project) {
  const sinceMs = Date.now();
  console.log(`----    tests: ${project}`);
  const file = join(RESULTS, `${project}.json`);
  const args = [
    'vitest',
    'run',
    `--project=${project}`,
    '--reporter=default',
    '--reporter=json',
    `--outputFile.json=${file}`,
  ];
  const ran = spawnSync('npx', args, { cwd: ROOT, stdio: ['ignore', 'inherit', 'inherit'] });
  const results = existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : undefined;
  const count = { passed: results?.numPassedTests ?? 0, failed: results?.numFailedTests ?? 0 };
  for (const suite of results?.testResults ?? []) {
    const bad = suite.assertionResults.filter((test) => test.status === 'failed');
    failed.push(...bad.map((test) => `${suite.name.replace(ROOT, '')}: ${test.fullName}`));
    if (suite.status === 'failed' && bad.length === 0) {
      failed.push(`${suite.name.replace(ROOT, '')}: ${suite.message.split('\n')[0]}`);
      count.failed += 1;
    }
    // In CI a test that did not run is a part that is missing.
    const skipped = suite.assertionResults.filter(
      (test) => test.status === 'pending' || test.status === 'skipped',
    );
    if (process.env.CI && skipped.length > 0) {
      failed.push(...skipped.map((test) => `skipped: ${test.fullName}`));
      count.failed += skipped.length;
    }
  }
  if (ran.status !== 0 && count.failed === 0) {
    failed.push(`vitest ${project} ended with ${ran.status ?? ran.signal}`);
    count.failed += 1;
  }
  passedCount += count.passed;
  failedCount += count.failed;
  console.log(`${count.failed === 0 ? 'ok    ' : 'FAILED'}  tests: ${project} (${seconds(sinceMs)})`);
}

try {
  installForTests();
  build();
} catch (error) {
  console.error(`npm test: ${error.message}`);
  console.log('0 passed, 1 failed');
  process.exit(1);
}

rmSync(RESULTS, { recursive: true, force: true });
mkdirSync(RESULTS, { recursive: true });
check('types', 'npx', 'tsc', '-p', 'tsconfig.json', '--noEmit');
check('lint', 'npx', 'oxlint', '--type-aware', '--deny-warnings');
check('format', 'npx', 'oxfmt', '--check');
check('docs are current', 'node', 'test/tools/docs.mjs', '--check');
vitest('unit');
vitest('real');

for (const name of failed) console.log(`failed: ${name}`);
console.log(`npm test took ${seconds(startedMs)}`);
console.log(`${passedCount} passed, ${failedCount} failed`);
process.exit(failedCount === 0 ? 0 : 1);
