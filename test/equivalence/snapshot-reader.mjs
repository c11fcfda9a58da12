// An application that reads a replica in a tight loop and checks an invariant in each snapshot. Alternates
// between a lasting connection and fresh ones. Prints `{reads, wrong}` at SIGTERM.
import Database from 'better-sqlite3';

const [path, balance] = process.argv.slice(2);
const wrong = [];
let reads = 0;
let stopped = false;
process.on('SIGTERM', () => (stopped = true));

const lasting = new Database(path, { readonly: true, timeout: 20_000 });
// Each snapshot sees one moment: the total is the same, and an index agrees with its table.
function check(database) {
  database.exec('BEGIN');
  const total = database.prepare('SELECT sum(v) AS v FROM balance').get().v;
  const byTable = database.prepare('SELECT count(*) AS n FROM rows NOT INDEXED').get().n;
  const byIndex = database.prepare("SELECT count(*) AS n FROM rows INDEXED BY rows_k WHERE k > ''").get().n;
  const sound = reads % 50 === 0 ? database.pragma('quick_check', { simple: true }) : 'ok';
  database.exec('COMMIT');
  reads += 1;
  if (total !== Number(balance) || byTable !== byIndex || sound !== 'ok') {
    wrong.push({ total, byTable, byIndex, sound });
  }
}

function turn() {
  if (stopped || wrong.length > 3) {
    lasting.close();
    process.stdout.write(JSON.stringify({ reads, wrong }));
    return;
  }
  check(lasting);
  if (reads % 3 === 0) {
    const fresh = new Database(path, { readonly: true, timeout: 20_000 });
    check(fresh);
    fresh.close();
  }
  setTimeout(turn, 1);
}
turn();
