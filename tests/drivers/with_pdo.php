<?php
// PDO: statements prepared on the server (its default), emulated, and never; COPY, several processes at once.

declare(strict_types=1);

define('SESSIONS', getenv('PGWEIR_MODE') !== 'transaction');
$address = sprintf('pgsql:host=%s;port=%s;dbname=%s', getenv('PGHOST'), getenv('PGPORT'), getenv('PGDATABASE'));

function connect(array $attributes = [], string $more = ''): PDO
{
    global $address;
    return new PDO($address . $more, getenv('PGUSER'), getenv('PGPASSWORD'), $attributes + [PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION]);
}

function same(mixed $expected, mixed $found): void
{
    if ($expected !== $found) {
        throw new Exception('expected ' . var_export($expected, true) . ', found ' . var_export($found, true));
    }
}

function fails(string $state, callable $work): void
{
    try {
        $work();
    } catch (PDOException $error) {
        same($state, (string) $error->getCode());
        return;
    }
    throw new Exception("no error $state");
}

function value(PDO $connection, string $sql, array $values = []): mixed
{
    $statement = $connection->prepare($sql);
    $statement->execute($values);
    return $statement->fetchColumn();
}

/** PHP has no threads here: each runs in a process of its own. */
function at_once(int $count, callable $work): void
{
    $children = [];
    for ($number = 0; $number < $count; $number++) {
        $child = pcntl_fork();
        if ($child === 0) {
            try {
                $work($number);
                exit(0);
            } catch (Throwable $failure) {
                fwrite(STDERR, $failure . "\n");
                exit(1);
            }
        }
        $children[] = $child;
    }
    foreach ($children as $child) {
        pcntl_waitpid($child, $status);
        same(0, $status);
    }
}

function simple_things(array $attributes): void
{
    $connection = connect($attributes);
    for ($n = 0; $n < 3; $n++) {
        $statement = $connection->prepare('select ?::int as i, ?::text as t, ?::bytea as b, ?::bool as o');
        $statement->bindValue(1, 7, PDO::PARAM_INT);
        $statement->bindValue(2, 'sieben ä€😀');
        $statement->bindValue(3, "\0\1", PDO::PARAM_LOB);
        $statement->bindValue(4, null, PDO::PARAM_NULL);
        $statement->execute();
        $row = $statement->fetch(PDO::FETCH_ASSOC);
        same([7, 'sieben ä€😀', null], [$row['i'], $row['t'], $row['o']]);
        same("\0\1", stream_get_contents($row['b']));
    }
    same(300000, strlen(value($connection, 'select ?::text', [str_repeat('x', 300000)])));
    $connection->exec('drop table if exists php_items');
    $connection->exec('create table php_items (id serial primary key, n int unique, t text)');
}

function errors_and_transactions(array $attributes): void
{
    $connection = connect($attributes);
    for ($n = 0; $n < 3; $n++) {
        fails('22012', fn () => $connection->query('select 1/0'));
        fails('42601', fn () => value($connection, 'selekt ?', [1]));
        fails('22012', fn () => value($connection, 'select 1 / ?::int', [0]));
    }
    $insert = $connection->prepare('insert into php_items (n, t) values (:n, :t)');
    for ($n = 0; $n < 5; $n++) {
        $connection->beginTransaction();
        $insert->execute(['n' => $n, 't' => 'x']);
        same((string) ($n + 1), (string) value($connection, 'select count(*) from php_items'));
        $connection->exec('savepoint s');
        fails('23505', fn () => $insert->execute(['n' => $n, 't' => 'again']));
        fails('25P02', fn () => $insert->execute(['n' => 100, 't' => 'refused']));
        $connection->exec('rollback to s');
        $connection->commit();
    }
    $connection->beginTransaction();
    $insert->execute(['n' => 50, 't' => 'undone']);
    $connection->rollBack();
    same(5, (int) value($connection, 'select count(*) from php_items'));
    // Outside a transaction lastval() is of whichever server connection; inside it is this one's.
    $connection->beginTransaction();
    $insert->execute(['n' => 51, 't' => 'kept']);
    same((int) value($connection, 'select max(id) from php_items'), (int) $connection->lastInsertId());
    $connection->commit();
}

/** More clients than server connections; PDO's names are the same in each, for other texts. */
function statements_on_many_connections(array $attributes): void
{
    at_once(8, function (int $number) use ($attributes) {
        $connection = connect($attributes);
        $sum = $connection->prepare('select ?::int + ?::int');
        $own = $connection->prepare("select ?::int::text || ' of $number'");
        for ($n = 0; $n < 60; $n++) {
            $sum->execute([$n, $number]);
            same($n + $number, $sum->fetchColumn());
            $own->execute([$n]);
            same("$n of $number", $own->fetchColumn());
            // Prepared, used, and deallocated by name when it goes out of scope.
            same($n * $number, value($connection, "select ?::int * $n", [$number]));
            if ($n % 7 === 0) {
                $connection->beginTransaction();
                $own->execute([$n]);
                same("$n of $number", $own->fetchColumn());
                $connection->commit();
            }
            if ($n % 11 === 0) {
                fails('22012', fn () => value($connection, 'select 1 / ?::int', [0]));
            }
        }
    });
}

function cursors(): void
{
    $connection = connect();
    $connection->beginTransaction();
    $statement = $connection->prepare('select generate_series(1, ?::int)', [PDO::ATTR_CURSOR => PDO::CURSOR_SCROLL]);
    $statement->execute([100]);
    same(1, $statement->fetchColumn());
    $last = $statement->fetch(PDO::FETCH_NUM, PDO::FETCH_ORI_LAST);
    same(100, $last[0]);
    $statement->closeCursor();
    $connection->commit();
}

function copying(): void
{
    $connection = connect();
    $connection->exec('drop table if exists php_wide');
    $connection->exec('create table php_wide (n int, t text)');
    $lines = array_map(fn ($n) => "$n\t" . str_repeat('x', $n % 200), range(0, 19999));
    same(true, $connection->pgsqlCopyFromArray('php_wide', $lines));
    $out = $connection->pgsqlCopyToArray('php_wide');
    usort($out, fn ($one, $other) => (int) $one <=> (int) $other);
    same($lines, array_map(fn ($line) => rtrim($line, "\n"), $out));
    fails('22P02', fn () => $connection->pgsqlCopyFromArray('php_wide', ["1\tx", "not a number\tx"]));
    same(20000, (int) value($connection, 'select count(*) from php_wide'));
}

function large_objects(): void
{
    $connection = connect();
    $connection->beginTransaction();
    $oid = $connection->pgsqlLOBCreate();
    $stream = $connection->pgsqlLOBOpen($oid, 'w');
    fwrite($stream, str_repeat('0123456789', 3000));
    fclose($stream);
    $stream = $connection->pgsqlLOBOpen($oid, 'r');
    same(30000, strlen(stream_get_contents($stream)));
    fclose($stream);
    $connection->pgsqlLOBUnlink($oid);
    $connection->commit();
}

function settings_follow_their_client(): void
{
    $zones = ['Europe/Berlin', 'Asia/Tokyo', 'America/Lima', 'UTC', 'Africa/Cairo', 'Asia/Kolkata', 'Pacific/Apia', 'Iran'];
    at_once(8, function (int $number) use ($zones) {
        $limit = 9001 + $number;
        $options = "-c timezone=$zones[$number] -c statement_timeout=$limit";
        $connection = connect([], ";application_name=client_$number;options='$options'");
        $show = fn (string $name) => $connection->query("show $name")->fetchColumn();
        for ($n = 0; $n < 25; $n++) {
            same([$zones[$number], "client_$number", "{$limit}ms"], [$show('timezone'), $show('application_name'), $show('statement_timeout')]);
        }
        $connection->exec("set names 'LATIN1'");
        for ($n = 0; $n < 10; $n++) {
            same("\xFC", $connection->query('select chr(252)')->fetchColumn());
        }
    });
}

/** What lives in the server's session: in transaction mode such a client keeps its server connection. */
function session_things(): void
{
    $connection = connect();
    $other = connect();
    $connection->exec('listen news');
    $other->exec("select pg_notify('news', 'hello')");
    $note = $connection->pgsqlGetNotify(PDO::FETCH_ASSOC, 10000);
    same(['news', 'hello'], [$note['message'], $note['payload']]);
    if (SESSIONS) {
        same($other->pgsqlGetPid(), $note['pid']);
    }
    $connection->exec('create temp table mine as select 1 as n');
    same(1, value($connection, 'select n from mine'));
}

$ways = [[], [PDO::ATTR_EMULATE_PREPARES => true], [PDO::PGSQL_ATTR_DISABLE_PREPARES => true]];
foreach ($ways as $attributes) {
    simple_things($attributes);
    errors_and_transactions($attributes);
    statements_on_many_connections($attributes);
}
cursors();
copying();
large_objects();
settings_follow_their_client();
session_things();
