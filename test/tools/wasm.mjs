// Part of `npm run build`: src/ltx/page-codec.wat, assembled, as a module of TypeScript, so that it is there wherever the
// code runs (dist/, tests, bench) without a file to be found.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import wabt from 'wabt';
import { ROOT } from './install.mjs';

const from = join(ROOT, 'src', 'ltx', 'page-codec.wat');
const to = join(ROOT, 'src', 'ltx', 'generated');

const assembler = await wabt();
const { buffer } = assembler.parseWat(from, readFileSync(from), { bulk_memory: true }).toBinary({});
mkdirSync(to, { recursive: true });
writeFileSync(
  join(to, 'page-codec.ts'),
  `// Made of ../page-codec.wat by \`npm run build\`.\nexport const PAGE_CODEC_WASM = '${Buffer.from(buffer).toString('base64')}';\n`,
);
